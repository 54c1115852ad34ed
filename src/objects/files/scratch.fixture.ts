// For tests of this folder: a directory and descriptors that go away with the test, and what can be seen of a descriptor.

import { mkdtempSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readFdInfo } from "../../proc/fdinfo.ts";
import * as fcntl from "../../sys/abi/fcntl.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";

/** A directory of one test, and its open descriptors. */
export class Scratch implements Disposable {
  readonly dir: string = mkdtempSync(join(tmpdir(), "reprise-open-"));
  readonly #open: number[] = [];

  /** Has a descriptor closed at the end. */
  keep(fd: number): number {
    this.#open.push(fd);
    return fd;
  }

  /** Closes one of them now. */
  close(fd: number): void {
    syscall("close", fd);
    this.#open.splice(this.#open.indexOf(fd), 1);
  }

  /** Path of a file in the directory. */
  path(name: string): string {
    return join(this.dir, name);
  }

  makeFifo(name: string): void {
    const path = Buffer.from(`${this.path(name)}\0`);
    syscall("mknodat", fcntl.AT_FDCWD, path, fcntl.S_IFIFO | 0o600, 0);
  }

  [Symbol.dispose](): void {
    for (const fd of this.#open) trySyscall("close", fd);
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** Flags and position, without close-on-exec. */
export function info(fd: number): { flags: number; pos: bigint } {
  const { flags, pos } = readFdInfo({ pid: process.pid, fd });
  return { flags: flags & ~fcntl.O_CLOEXEC, pos };
}

/** Text of the descriptor's link. */
export function target(fd: number): string {
  return readlinkSync(`/proc/self/fd/${fd}`);
}

/** The whole content, whatever the descriptor may do. */
export function content(fd: number): string {
  return readFileSync(`/proc/self/fd/${fd}`, "utf8");
}

/** Code and message of the error that a function throws. */
export function codeOf(run: () => unknown): unknown {
  try {
    run();
  } catch (error) {
    return { code: (error as { code: string }).code, message: (error as Error).message };
  }
  return "no error";
}

/** What can be read without waiting. */
export function readNow(fd: number): string {
  const flags = syscall("fcntl", fd, fcntl.F_GETFL, 0);
  syscall("fcntl", fd, fcntl.F_SETFL, flags | fcntl.O_NONBLOCK);
  const bytes = Buffer.alloc(200_000);
  const count = trySyscall("read", fd, bytes, bytes.length);
  syscall("fcntl", fd, fcntl.F_SETFL, flags);
  return bytes.toString("utf8", 0, Math.max(count, 0));
}
