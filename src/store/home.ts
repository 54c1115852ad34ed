// Where named tasks and their checkpoints live:
//
//   $REPRISE_HOME or /var/lib/reprise
//     lock                            taken while a name is given away
//     tasks/NAME/lock                 taken by the one command that works on the task
//     tasks/NAME/state.json           what the task is, and its pid
//     tasks/NAME/log                  its standard output and error
//     tasks/NAME/checkpoints/N/       meta.json, and images/ in CRIU's format
//
// Images hold the memory of processes, secrets included: every directory is for root alone.

import { existsSync, mkdirSync } from "node:fs";
import { join, resolve } from "node:path";
import { RepriseError } from "../errors.ts";
import { makeDirectories } from "../images/make-directories.ts";

const DEFAULT_HOME = "/var/lib/reprise";
const PRIVATE = 0o700;
const NAME_PATTERN = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$/;

/** The directory of all state, as an absolute path. */
export function homeDirectory(): string {
  const given = process.env["REPRISE_HOME"];
  return given === undefined || given === "" ? DEFAULT_HOME : resolve(given);
}

/** The lock of all names. */
export function namesLockPath(): string {
  return join(homeDirectory(), "lock");
}

export function tasksDirectory(): string {
  return join(homeDirectory(), "tasks");
}

/**
 * The directory of a named task, whether it exists or not.
 *
 * @throws RepriseError BAD_ARGUMENT for a text that is no name.
 */
export function taskDirectory(name: string): string {
  if (!NAME_PATTERN.test(name)) {
    throw new RepriseError("BAD_ARGUMENT", `${JSON.stringify(name)} is not a name`, {
      hint: "A name has up to 63 letters, digits, dots, dashes and underscores, and starts with a letter or digit.",
    });
  }
  return join(tasksDirectory(), name);
}

/** Makes the directory of all tasks, if it is not there. */
export function createTasksDirectory(): void {
  makeDirectories(tasksDirectory(), PRIVATE);
}

/**
 * Makes the directory of a new task; making it is what takes the name.
 *
 * @throws RepriseError NAME_TAKEN when there is one already.
 */
export function createTaskDirectory(name: string): string {
  const directory = taskDirectory(name);
  createTasksDirectory();
  if (existsSync(directory)) throw nameTaken(name);
  mkdirSync(directory, { mode: PRIVATE });
  mkdirSync(join(directory, "checkpoints"), { mode: PRIVATE });
  return directory;
}

export function nameTaken(name: string): RepriseError {
  return new RepriseError("NAME_TAKEN", `the name ${name} is taken`, {
    hint: `Choose another one, or remove it: reprise rm ${name}`,
  });
}
