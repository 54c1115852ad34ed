// Errors of node's own file functions at the edge of the engine: front ends know RepriseErrors only.

import { RepriseError } from "../errors.ts";

/**
 * Turns an error of node's file functions into a RepriseError SYSCALL; others are returned as they are.
 *
 * @param doing what failed: "dump pid 42"
 */
export function asRepriseError(error: unknown, doing: string): unknown {
  if (error instanceof RepriseError) return isBare(error) ? told(error, doing) : error;
  if (!(error instanceof Error)) return error;
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

/** A system call of ours whose failure nobody expected, and so nobody said what it was for. */
function isBare({ message, syscall, errno }: RepriseError): boolean {
  return syscall !== undefined && message === `${syscall}: ${errno}`;
}

function told(error: RepriseError, doing: string): RepriseError {
  const { code, message, hint, pid, fd, syscall, errno } = error;
  const details = { hint, pid, fd, syscall, errno, cause: error };
  const whole = new RepriseError(code, `cannot ${doing}: ${message}`, details);
  // The log shows where it was.
  if (error.stack !== undefined) whole.stack = error.stack;
  return whole;
}

const HINTS: Readonly<Record<string, string>> = {
  ENOSPC: "The disk is full: make room and try again.",
  EDQUOT: "The disk quota is used up: make room and try again.",
  EROFS: "The file system is read-only: take another directory.",
  ENOTDIR: "A part of the path is a file: take another directory.",
  EACCES: "Run as root, or take a directory that may be written.",
  EMFILE: "Raise the limit on open files (ulimit -n).",
};
