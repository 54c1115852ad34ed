// How a command reaches a resident engine. The keeper has a directory with a slot for each engine that stands by:
//
//   /run/reprise/standby/keeper     the keeper's pid, locked as long as it lives
//   /run/reprise/standby/N/busy     made by the command that takes the slot (bin/criu), with its pid
//   /run/reprise/standby/N/request  FIFO: a line of numbers, see Request; open as long as the command waits
//   /run/reprise/standby/N/answer   FIFO: "begun", and its exit code; or "cold": it is to do the work itself; or "died"
//
// All else (arguments, environment, directory, descriptors) the engine takes from the command's /proc.

/** A command that waits for its exit code. */
export interface Request {
  readonly front: number;
  /** The FIFO by which it asked, which it has open. */
  readonly fifo: string;
  /** Number of its arguments, behind the shell and the script. */
  readonly words: number;
  /** Where it has its standard input and output, instead of which it has the answer and the request. */
  readonly input: number;
  readonly output: number;
  /** Where it has those, too. */
  readonly answer: number;
  readonly request: number;
}

/** From a worker to its keeper. */
export type Report =
  /** It can take a command. */
  | { readonly kind: "ready" }
  /** What the command is to be told; "cold" has a reason. */
  | { readonly kind: "answer"; readonly text: string; readonly refused?: string }
  /** It ends now, and another is to take its place. */
  | { readonly kind: "retires"; readonly why: string };

/** What comes before the answer: from here on the command must not do its work itself. */
export const BEGUN = "begun";

/** The answer to a command that has to do its work itself. */
export const COLD = "cold";

/** The answer to a command whose engine ended. */
export const DIED = "died";

/** From here on a worker has its own descriptors; those below are a command's. */
export const FIRST_OWN_FD = 64;

/** The keeper's standard error in a worker, behind the channel between them. */
export const KEEPER_STDERR: number = FIRST_OWN_FD + 1;
