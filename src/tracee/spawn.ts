// Making a process by clone3 from this very process, which posix_spawn cannot: with a wanted pid, in new namespaces, and as a
// child of our own parent (CLONE_PARENT), so that a container runtime that started us becomes the parent of what it restores.

import { CLONE_ARGS_SIZE, CLONE_PARENT, CLONE_VFORK, CLONE_VM } from "../sys/abi/sched.ts";
import { SIG_SETMASK, SIGCHLD, SIGKILL, SIGSET_SIZE } from "../sys/abi/signal.ts";
import { addressOf, callNative, syscall, syscallError } from "../sys/ffi.ts";
import { writeU64 } from "../sys/memory.ts";
import { sendSignal } from "../sys/process.ts";
import { errnoName } from "../sys/errno.ts";
import { readExe, readExeIfAlive } from "../proc/exe.ts";
import { SPAWN } from "./arch/x86_64/code.ts";
import { loadCode } from "./local.ts";

/** How a process is made. */
export interface SpawnOptions {
  readonly path: string;
  readonly argv: readonly string[];
  /** CLONE_NEW… and CLONE_PARENT. */
  readonly flags: number;
  /**
   * Runs when the process is there, before it executes the program: it then becomes root of its new user namespace. Without it the
   * program runs when this function returns.
   */
  readonly beforeProgram?: (pid: number) => void;
  /** Its number in the pid namespace that its maker's children are in (or in the new one). */
  readonly pid: number;
}

let spawnAt: number | undefined;

/**
 * Starts a program with an empty environment; it inherits every descriptor that is not close-on-exec. All its signals are blocked.
 *
 * @returns its pid in our pid namespace
 * @throws RepriseError SYSCALL
 */
export function spawnWithPid(options: SpawnOptions): number {
  const { path, argv, flags, pid, beforeProgram } = options;
  spawnAt ??= loadCode(SPAWN);
  const strings = [path, ...argv].map((text) => Buffer.from(`${text}\0`));
  const [program = Buffer.alloc(1), ...words] = strings;
  const argvBytes = pointers(words);
  const environment = pointers([]);
  const waits = beforeProgram !== undefined;
  const exec = Buffer.concat([pointers([program, argvBytes, environment]), Buffer.alloc(8)]);
  exec[ROOT_WORD] = exec[WAIT_WORD] = waits ? 1 : 0;
  const setTid = Buffer.alloc(4);
  setTid.writeInt32LE(pid);
  const args = Buffer.alloc(CLONE_ARGS_SIZE);
  writeU64(args, 0, flags + CLONE_VM + (waits ? 0 : CLONE_VFORK));
  // With CLONE_PARENT the exit signal is the maker's own (clone(2)).
  writeU64(args, EXIT_SIGNAL, (flags & CLONE_PARENT) === 0 ? SIGCHLD : 0);
  writeU64(args, SET_TID, addressOf(setTid));
  writeU64(args, SET_TID_SIZE, 1);
  // Node's handlers must not run in the child, which has our memory until it executes.
  const mask = Buffer.alloc(SIGSET_SIZE);
  syscall("rt_sigprocmask", SIG_SETMASK, Buffer.alloc(SIGSET_SIZE, 0xff), mask, SIGSET_SIZE);
  let result: number;
  try {
    result = callNative(spawnAt, addressOf(args), CLONE_ARGS_SIZE, addressOf(exec));
  } finally {
    syscall("rt_sigprocmask", SIG_SETMASK, mask, 0, SIGSET_SIZE);
  }
  // The kernel knew these by their addresses only.
  const used = [...strings, argvBytes, environment, setTid].length > 0;
  if (result < 0 || !used) {
    throw syscallError("clone3", -result, `make process ${pid} (${errnoName(-result)})`);
  }
  if (beforeProgram !== undefined) {
    try {
      beforeProgram(result);
    } catch (error) {
      sendSignal(result, SIGKILL);
      throw error;
    } finally {
      exec[WAIT_WORD] = 0;
      waitForProgram(result);
    }
  }
  return result;
}

/** Words behind three pointers: the child is to become root, and waits before. It may come to the first one late. */
const ROOT_WORD = 24;
const WAIT_WORD = 32;

/** Until the process has memory of its own. */
function waitForProgram(pid: number): void {
  const own = readExe(process.pid)?.target;
  const deadline = performance.now() + PATIENCE_MS;
  while (readExeIfAlive(pid)?.target === own) {
    if (performance.now() > deadline) return;
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
  }
}

const PATIENCE_MS = 6000;

/** Offsets in struct clone_args. */
const EXIT_SIGNAL = 32;
const SET_TID = 64;
const SET_TID_SIZE = 72;

/** Addresses of buffers, and a null. */
function pointers(buffers: readonly Buffer[]): Buffer {
  const bytes = Buffer.alloc((buffers.length + 1) * 8);
  buffers.forEach((buffer, index) => writeU64(bytes, index * 8, addressOf(buffer)));
  return bytes;
}
