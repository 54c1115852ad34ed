// The lines that inotify and fanotify descriptors add to fdinfo, one a mark: fs/notify/fdinfo.c. All numbers
// are hexadecimal without a prefix. The file handle is what name_to_handle_at(2) gives and is left out when
// the file system has none.

import type { FileHandle } from "./file-handle.ts";

/** One watch of an inotify descriptor. */
export interface InotifyMark {
  readonly wd: number;
  readonly ino: bigint;
  /** Device in the kernel's own encoding: the major number above 20 bits of minor. */
  readonly sdev: number;
  readonly mask: number;
  readonly ignoredMask: number;
  readonly handle: FileHandle | undefined;
}

/** What a fanotify descriptor was made with, and one line for each mark. */
export type FanotifyLine =
  | { readonly kind: "group"; readonly flags: number; readonly eventFlags: number }
  | (FanotifyMarkMasks & {
      readonly kind: "inode";
      readonly ino: bigint;
      readonly sdev: number;
      readonly handle: FileHandle | undefined;
    })
  | (FanotifyMarkMasks & { readonly kind: "mount"; readonly mntId: number })
  | (FanotifyMarkMasks & { readonly kind: "filesystem"; readonly sdev: number })
  | (FanotifyMarkMasks & { readonly kind: "mount namespace"; readonly mntNs: number });

export interface FanotifyMarkMasks {
  readonly mflags: number;
  readonly mask: number;
  readonly ignoredMask: number;
}

/** Parses an `inotify wd:…` line. */
export function parseInotify(line: string): InotifyMark {
  const values = pairs(line);
  return {
    wd: hex(values, "wd"),
    ino: bigHex(values, "ino"),
    sdev: hex(values, "sdev"),
    mask: hex(values, "mask"),
    ignoredMask: hex(values, "ignored_mask"),
    handle: handle(values),
  };
}

/** Parses a `fanotify …` line; undefined when its form is not known. */
export function parseFanotify(line: string): FanotifyLine | undefined {
  const values = pairs(line);
  if (values.has("event-flags")) {
    return { kind: "group", flags: hex(values, "flags"), eventFlags: hex(values, "event-flags") };
  }
  const masks = {
    mflags: hex(values, "mflags"),
    mask: hex(values, "mask"),
    ignoredMask: hex(values, "ignored_mask"),
  };
  if (values.has("ino")) {
    const ino = bigHex(values, "ino");
    return { kind: "inode", ...masks, ino, sdev: hex(values, "sdev"), handle: handle(values) };
  }
  if (values.has("mnt_id")) return { kind: "mount", ...masks, mntId: hex(values, "mnt_id") };
  if (values.has("sdev")) return { kind: "filesystem", ...masks, sdev: hex(values, "sdev") };
  // The one decimal number of these lines.
  if (values.has("mnt_ns")) {
    return { kind: "mount namespace", ...masks, mntNs: Number(values.get("mnt_ns")) };
  }
  return undefined;
}

type Pairs = ReadonlyMap<string, string>;

function pairs(line: string): Pairs {
  const values = new Map<string, string>();
  for (const word of line.split(" ")) {
    const colon = word.indexOf(":");
    if (colon > 0) values.set(word.slice(0, colon), word.slice(colon + 1));
  }
  return values;
}

function hex(values: Pairs, name: string): number {
  return Number.parseInt(values.get(name) ?? "0", 16);
}

function bigHex(values: Pairs, name: string): bigint {
  return BigInt(`0x${values.get(name) ?? "0"}`);
}

function handle(values: Pairs): FileHandle | undefined {
  const digits = values.get("f_handle");
  if (digits === undefined || digits.length % 2 !== 0) return undefined;
  return { type: hex(values, "fhandle-type"), bytes: Uint8Array.from(Buffer.from(digits, "hex")) };
}
