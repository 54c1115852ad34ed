// Errors of node's own file functions at the edge of the engine: front ends know RepriseErrors only.

import { RepriseError } from "../errors.ts";

/**
 * Turns an error of node's file functions into a RepriseError SYSCALL; others are returned as they are.
 *
 * @param doing what failed: "dump pid 42"
 */
export function asRepriseError(error: unknown, doing: string): unknown {
  if (error instanceof RepriseError || !(error instanceof Error)) return error;
  const { code, syscall, path } = error as NodeJS.ErrnoException;
  if (code === undefined || syscall === undefined) return error;
  const where = path === undefined ? "" : ` ${path}`;
  return new RepriseError("SYSCALL", `cannot ${doing}: ${syscall}${where}: ${code}`, {
    syscall,
    errno: code,
    cause: error,
    ...(HINTS[code] === undefined ? {} : { hint: HINTS[code] }),
  });
}

const HINTS: Readonly<Record<string, string>> = {
  ENOSPC: "The disk is full: make room and try again.",
  EDQUOT: "The disk quota is used up: make room and try again.",
  EROFS: "The file system is read-only: take another directory.",
  ENOTDIR: "A part of the path is a file: take another directory.",
  EACCES: "Run as root, or take a directory that may be written.",
  EMFILE: "Raise the limit on open files (ulimit -n).",
};
