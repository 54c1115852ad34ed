// Errors and log lines as people see them.

import { asRepriseError } from "../engine/system-error.ts";
import { RepriseError, type ErrorCode } from "../errors.ts";
import { LogLevel, setLogSink } from "../log.ts";

const FAILURE = 1;

/** Exit codes other than 1; docs/exit-codes.md explains them. */
export const EXIT_CODES: Readonly<Partial<Record<ErrorCode, number>>> = {
  BAD_ARGUMENT: 2,
  NO_SUCH_NAME: 3,
  NO_SUCH_PROCESS: 3,
  UNSUPPORTED: 4,
  KERNEL_FEATURE: 4,
};

/**
 * Prints an error and its hint to standard error. Returns the exit code.
 *
 * @param command the name of the command that failed
 */
export function reportError(thrown: unknown, command: string): number {
  const error = asRepriseError(thrown, `carry out ${command}`);
  const [message, hint] = errorTexts(error);
  process.stderr.write(`error: ${message}\n`);
  if (hint !== undefined) process.stderr.write(`  ${hint}\n`);
  return error instanceof RepriseError ? (EXIT_CODES[error.code] ?? FAILURE) : FAILURE;
}

/** Prints the engine's log to standard error, all of it. */
export function logToStderr(): void {
  setLogSink((_level, text) => void process.stderr.write(`${text}\n`), LogLevel.DEBUG);
}

function errorTexts(error: unknown): readonly [string, string | undefined] {
  if (error instanceof RepriseError) return [error.message, error.hint];
  if (!(error instanceof Error)) return [String(error), undefined];
  return [error.stack ?? error.message, "This is a bug in Reprise. Please report it."];
}
