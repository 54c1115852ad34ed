// Deleted files: see below.
import { RepriseError } from "../../errors.ts";
import type { RegFileEntry } from "../../images/schema/messages.generated.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { FilesDump, FilesRestore, OpenFile } from "./file-kind.ts";
import { locate } from "./path.ts";

/** The path to store for a file. */
export function nameForImages(file: OpenFile, _id: number, _dump: FilesDump): string {
  const found = locate(file);
  if (found.kind === "there") return found.name;
  throw new RepriseError(
    "UNSUPPORTED",
    `cannot dump fd ${file.fd} of pid ${file.task.pid}: ${found.name} is deleted`,
    { pid: file.task.pid, fd: file.fd },
  );
}

/** Opens a remapped file; undefined for one that is not remapped. */
export function openRemapped(
  _program: Program,
  _entry: RegFileEntry,
  _restore: FilesRestore,
): Argument | undefined {
  return undefined;
}
