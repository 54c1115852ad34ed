// The keeper of the resident engines: it starts them, gives each the commands that took its slot, and answers for one that died.

import { chmodSync, lstatSync, readdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { RepriseError } from "../../errors.ts";
import { makeDirectories } from "../../images/make-directories.ts";
import { takeLock } from "../../store/lock.ts";
import { printOut } from "../output.ts";
import { Slot } from "./slot.ts";

/** Nobody waits for another keeper's end. */
const NO_PATIENCE = { what: "standby", patienceMs: 0 };

/**
 * Keeps engines ready until a signal ends it: `standby-keeper DIRECTORY NUMBER`. Prints a line when the first one is ready.
 *
 * @throws RepriseError BAD_ARGUMENT, BUSY when there is a keeper already
 */
export async function keep([directory = "", count = ""]: readonly string[]): Promise<number> {
  const workers = Number(count);
  if (directory === "" || !Number.isInteger(workers) || workers < 1)
    throw new RepriseError("BAD_ARGUMENT", `${count} is not a number of engines`);
  makePrivate(directory);
  using lock = await takeLock(join(directory, "keeper"), NO_PATIENCE);
  if (lock === undefined) throw new RepriseError("BAD_ARGUMENT", `there is no ${directory}`);
  for (const name of readdirSync(directory)) if (isSlot(name)) remove(join(directory, name));
  const ending = endSignal();
  const surroundings = { isCurrent: currentBuild(), onStale: ending.end };
  const slots = Array.from(
    { length: workers },
    (_, index) => new Slot(join(directory, String(index)), surroundings),
  );
  try {
    await Promise.race([ending.came, firstReady(slots).then(() => ending.came)]);
  } finally {
    await Promise.all(slots.map((slot) => slot.end()));
  }
  return 0;
}

async function firstReady(slots: readonly Slot[]): Promise<void> {
  await Promise.race(slots.map(({ ready }) => ready));
  printOut("ready\n");
}

const PRIVATE = 0o700;

/** Whoever can write there can have root's commands answered: it is root's alone. */
function makePrivate(directory: string): void {
  makeDirectories(directory, PRIVATE);
  const found = lstatSync(directory);
  if (!found.isDirectory() || found.uid !== process.geteuid?.()) {
    throw new RepriseError("BAD_ARGUMENT", `${directory} is not a directory of ours`, {
      hint: "Remove it, or name another one in REPRISE_STANDBY.",
    });
  }
  chmodSync(directory, PRIVATE);
}

function isSlot(name: string): boolean {
  return /^\d+$/.test(name);
}

function remove(path: string): void {
  rmSync(path, { recursive: true, force: true });
}

/** Whether the executable still is the one that we run: after an update commands must not get an old engine. */
function currentBuild(): () => boolean {
  const path = process.argv[1] ?? "";
  const stamp = (): string => {
    const found = statSync(path, { throwIfNoEntry: false });
    return `${found?.dev}:${found?.ino}:${found?.mtimeMs}`;
  };
  const own = stamp();
  return () => stamp() === own;
}

/** A signal, or an executable that was replaced: a keeper that is wanted is started again, with the new one. */
function endSignal(): { readonly came: Promise<void>; readonly end: () => void } {
  let end: () => void = () => undefined;
  const came = new Promise<void>((resolve) => (end = resolve));
  for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const) process.on(signal, end);
  return { came, end };
}
