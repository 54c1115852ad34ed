// How sockets are named in errors and warnings of a dump.

import { RepriseError } from "../../errors.ts";
import type { OpenFile } from "../files/file-kind.ts";

/** `fd 3 of pid 42 (socket:[7])`. */
export function socketName({ task, fd, target }: OpenFile): string {
  return `fd ${fd} of pid ${task.pid} (${target})`;
}

/** The error for a socket that cannot be saved as it is. */
export function refusedSocket(
  file: OpenFile,
  why: string,
  hint = "Let the process close it before the dump.",
): RepriseError {
  return new RepriseError("UNSUPPORTED", `cannot dump ${socketName(file)}: ${why}`, {
    pid: file.task.pid,
    fd: file.fd,
    hint,
  });
}
