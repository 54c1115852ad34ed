// Whatever is thrown, as an error with a code.

import { asRepriseError } from "../engine/system-error.ts";
import { RepriseError } from "../errors.ts";

/** The error itself, one of the system's, or what stands for one that nobody foresaw. */
export function asFailure(thrown: unknown): RepriseError {
  const error = asRepriseError(thrown, "go on");
  if (error instanceof RepriseError) return error;
  const message = error instanceof Error ? error.message : String(error);
  const wrapped = new RepriseError("INTERNAL", `internal error: ${message}`, {
    hint: "This is a bug in Reprise. Please report it with the log (-v4).",
    cause: error,
  });
  if (error instanceof Error && error.stack !== undefined) wrapped.stack = error.stack;
  return wrapped;
}
