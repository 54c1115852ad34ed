// One command at a time works on a task. The lock is flock(2) on a file in the task's directory: the kernel takes it back
// when its holder ends, however it ends, so there are no stale ones. The text in the file tells who has it.

import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  readFileSync,
  statSync,
  writeSync,
} from "node:fs";
import { setTimeout } from "node:timers/promises";
import { RepriseError } from "../errors.ts";
import { EAGAIN } from "../sys/errno.ts";
import { syscallError, trySyscall } from "../sys/ffi.ts";

const LOCK_EX = 2;
const LOCK_NB = 4;
const PATIENCE_MS = 5_000;
const POLL_MS = 20;
const FILE_MODE = 0o600;

export interface LockOptions {
  /** What is locked and for what, for the error of who has to wait too long: `looper`. */
  readonly what: string;
  /** @default 5000 */
  readonly patienceMs?: number;
}

/** A held lock; disposing of it gives it back. */
export interface Lock extends Disposable {
  readonly path: string;
}

/**
 * Takes the lock of a file, which is made if it is not there; waits for another holder.
 *
 * @returns undefined when its directory does not exist.
 * @throws RepriseError BUSY naming the holder, after some seconds.
 */
export async function takeLock(path: string, options: LockOptions): Promise<Lock | undefined> {
  const deadline = performance.now() + (options.patienceMs ?? PATIENCE_MS);
  for (;;) {
    const fd = openLockFile(path);
    if (fd === undefined) return undefined;
    const result = trySyscall("flock", fd, LOCK_EX | LOCK_NB);
    // Who had it may have removed the file: then another one is the lock.
    if (result === 0 && isAt(fd, path)) return held(fd, path);
    const holder = result === 0 ? "" : readFileSync(path, "utf8");
    closeSync(fd);
    if (result < 0 && result !== -EAGAIN) throw syscallError("flock", -result, `lock ${path}`);
    if (result === 0) continue;
    if (performance.now() > deadline) {
      throw new RepriseError("BUSY", `${options.what} is busy: another command works on it`, {
        ...(holder === "" ? {} : { pid: Number.parseInt(holder, 10) }),
        hint: `Wait for it and try again${holder === "" ? "" : `; it is pid ${holder.trim()}`}.`,
      });
    }
    await setTimeout(POLL_MS);
  }
}

function openLockFile(path: string): number | undefined {
  try {
    return openSync(path, constants.O_RDWR | constants.O_CREAT, FILE_MODE);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}

function isAt(fd: number, path: string): boolean {
  const there = statSync(path, { throwIfNoEntry: false });
  return there !== undefined && there.ino === fstatSync(fd).ino;
}

function held(fd: number, path: string): Lock {
  ftruncateSync(fd, 0);
  writeSync(fd, `${process.pid} (${process.argv.slice(2).join(" ")})\n`);
  return { path, [Symbol.dispose]: () => closeSync(fd) };
}
