// The one error class of the project. An error says what was being done, to which object of which
// process, which call failed and how, and what the user can do. Codes are stable and are listed in
// docs/errors.md (a test compares the two).

/** Every stable error code. docs/errors.md explains each one. */
export const ERROR_CODES = [
  "BAD_ARGUMENT",
  "BAD_IMAGE",
  "IMAGE_MISSING",
  "IMAGE_VERSION",
  "SYSCALL",
  "REMOTE_CALL",
  "NO_SUCH_PROCESS",
  "NOT_PERMITTED",
  "TASK_DIED",
  "FREEZE_TIMEOUT",
  "UNSUPPORTED",
  "PID_TAKEN",
  "FILE_CHANGED",
  "KERNEL_FEATURE",
  "NAME_TAKEN",
  "NO_SUCH_NAME",
  "BUSY",
  "CONTAINER_ENGINE",
  "INTERNAL",
] as const;

export type ErrorCode = (typeof ERROR_CODES)[number];

export interface ErrorDetails {
  /** Process the error is about, in the engine's pid namespace. */
  readonly pid?: number | undefined;
  /** Descriptor number in that process. */
  readonly fd?: number | undefined;
  /** System call that failed, by name. */
  readonly syscall?: string | undefined;
  /** Error number as a name, e.g. "ENOENT". */
  readonly errno?: string | undefined;
  /** What the user can do about it: one or two sentences. */
  readonly hint?: string | undefined;
  /** The error behind this one. */
  readonly cause?: unknown;
}

/**
 * An error for people. `message` is one line, lower case, without a full stop, in the form
 * `cannot VERB OBJECT: CALL: ERRNO`; `hint` says what to do.
 */
export class RepriseError extends Error {
  readonly code: ErrorCode;
  readonly pid: number | undefined;
  readonly fd: number | undefined;
  readonly syscall: string | undefined;
  readonly errno: string | undefined;
  readonly hint: string | undefined;

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = "RepriseError";
    this.code = code;
    this.pid = details.pid;
    this.fd = details.fd;
    this.syscall = details.syscall;
    this.errno = details.errno;
    this.hint = details.hint;
  }
}

/** A broken invariant: our bug, never the user's fault. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) {
    throw new RepriseError("INTERNAL", `internal error: ${message}`, {
      hint: "This is a bug in Reprise. Please report it with the log (-v4).",
    });
  }
}
