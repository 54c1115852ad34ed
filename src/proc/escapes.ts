// The kernel writes awkward bytes of names as a backslash and three octal digits (mangle_path and
// string_escape in fs/seq_file.c, lib/string_helpers.c). Which bytes depends on the file: maps and smaps
// escape the newline only and not the backslash itself, so there a file whose name really holds the four
// characters `\012` looks the same as one with a newline; map_files tells them apart.

/** Replaces `\ooo` by the byte meant, for those byte values alone that the file in question escapes. */
export function unescapeOctal(text: string, escaped: string): string {
  if (!text.includes("\\")) return text;
  return text.replace(/\\([0-3][0-7]{2})/g, (whole, digits: string) => {
    const char = String.fromCharCode(Number.parseInt(digits, 8));
    return escaped.includes(char) ? char : whole;
  });
}
