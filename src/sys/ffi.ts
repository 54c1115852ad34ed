// The only way from TypeScript into the kernel: libc's syscall() through koffi. All calls are
// synchronous and on the calling thread, because ptrace belongs to one thread.

import type * as Koffi from "koffi";
import { RepriseError } from "../errors.ts";
import { errnoName } from "./errno.ts";
import { SYSCALLS, type SyscallName } from "./syscalls.x86_64.ts";

/** koffi's native part. Its JavaScript looks for it and wraps functions that are not used here, which takes 5 ms. */
const NATIVE = "@koromix/koffi-linux-x64/linux_x64/koffi.node";

const koffi = loadKoffi();

/** koffi is CommonJS with a native part: loaded at run time so that bundles leave it alone. */
function loadKoffi(): typeof Koffi {
  const own = inBundle();
  if (own !== undefined) return own;
  // An ES module has no `require`; a bundle has one, and is spared what Node loads to make another.
  const requireHere =
    typeof require === "function"
      ? require
      : process.getBuiltinModule("node:module").createRequire(import.meta.url);
  try {
    return requireHere(NATIVE) as typeof Koffi;
  } catch {
    return requireHere("koffi") as typeof Koffi; // another libc, or installed in another place
  }
}

/** Loaded from where it is beside dist/ in a checkout: to look for it as a module takes half a millisecond. */
function inBundle(): typeof Koffi | undefined {
  const loaded = { exports: {} as typeof Koffi };
  try {
    process.dlopen(loaded, `${import.meta.dirname}/../node_modules/${NATIVE}`);
  } catch {
    return undefined;
  }
  return loaded.exports;
}

/** What a system call takes: a number, a raw 64-bit value, or the address of a buffer's bytes. */
export type SyscallArgument = number | bigint | Uint8Array;

const libc = koffi.load("libc.so.6");
interface RawSyscall {
  (...args: readonly (number | bigint)[]): number | bigint;
  /** On a thread of Node's pool; the last argument is called with the result. */
  readonly async: (...args: readonly unknown[]) => void;
}

const rawSyscall = libc.func("syscall", "long", Array(7).fill("intptr_t")) as RawSyscall;

/**
 * A function that this process has in it already, of Node itself or of a library that Node uses; undefined where it has none of
 * that name. Types are koffi's.
 */
export function functionInProcess(
  name: string,
  result: string,
  parameters: readonly string[],
): ((...args: readonly (number | Uint8Array)[]) => unknown) | undefined {
  try {
    return koffi.load(null).func(name, result, [...parameters]);
  } catch {
    return undefined;
  }
}

/** The address of a buffer's first byte in this process. The caller keeps the buffer alive. */
export function addressOf(buffer: Uint8Array): number {
  return Number(koffi.address(buffer));
}

/**
 * Makes one system call in this process.
 *
 * @returns the result, or the negative error number (never throws).
 */
export function trySyscall(
  name: SyscallName,
  a?: SyscallArgument,
  b?: SyscallArgument,
  c?: SyscallArgument,
  d?: SyscallArgument,
  e?: SyscallArgument,
  f?: SyscallArgument,
): number {
  // Not a list: one would be made for each of ten thousands of calls.
  const result = Number(
    rawSyscall(SYSCALLS[name].nr, word(a), word(b), word(c), word(d), word(e), word(f)),
  );
  return result === -1 ? -koffi.errno() : result;
}

/** Buffers of calls on other threads, which only know their addresses. */
const inUse = new Set<readonly SyscallArgument[]>();

/** Makes one system call on another thread, while the event loop goes on. Resolves with the result, or -1. */
export function syscallInBackground(
  name: SyscallName,
  ...args: readonly SyscallArgument[]
): Promise<number> {
  const words = Array.from({ length: 6 }, (_, index) => word(args[index]));
  return new Promise((resolve, reject) => {
    inUse.add(args);
    rawSyscall.async(
      SYSCALLS[name].nr,
      ...words,
      (error: Error | null, result: number | bigint) => {
        inUse.delete(args);
        if (error === null) resolve(Number(result));
        else reject(error);
      },
    );
  });
}

/**
 * Makes one system call in this process.
 *
 * @throws RepriseError SYSCALL when the kernel returns an error.
 */
export function syscall(
  name: SyscallName,
  a?: SyscallArgument,
  b?: SyscallArgument,
  c?: SyscallArgument,
  d?: SyscallArgument,
  e?: SyscallArgument,
  f?: SyscallArgument,
): number {
  const result = trySyscall(name, a, b, c, d, e, f);
  if (result < 0 && result > -4096) throw syscallError(name, -result);
  return result;
}

/** The error for a failed system call of ours, optionally with what was being done. */
export function syscallError(name: SyscallName, errno: number, doing?: string): RepriseError {
  const what = doing === undefined ? "" : `cannot ${doing}: `;
  return new RepriseError("SYSCALL", `${what}${name}: ${errnoName(errno)}`, {
    syscall: name,
    errno: errnoName(errno),
  });
}

function word(arg: SyscallArgument | undefined): number | bigint {
  if (arg === undefined) return 0;
  if (typeof arg === "number") return arg;
  if (typeof arg === "bigint") return BigInt.asIntN(64, arg);
  return koffi.address(arg);
}

let posixSpawn:
  | ((
      pid: number[],
      path: string,
      actions: null,
      attributes: null,
      argv: unknown,
      envp: unknown,
    ) => number)
  | undefined;

/**
 * Starts a program with an empty environment; it inherits every descriptor that is not close-on-exec.
 *
 * @throws RepriseError SYSCALL
 */
export function spawnProgram(path: string, argv: readonly string[]): number {
  posixSpawn ??= libc.func(
    "int posix_spawn(_Out_ int *pid, const char *path, void *actions, void *attributes, const char **argv, const char **envp)",
  ) as NonNullable<typeof posixSpawn>;
  const pid = [0];
  const errno = posixSpawn(pid, path, null, null, [...argv, null], [null]);
  if (errno !== 0) throw syscallError("execve", errno, `start ${path}`);
  return pid[0] as number;
}

const nativeFunction = koffi.proto("intptr_t", ["intptr_t", "intptr_t", "intptr_t"]);

/** Calls machine code in this process that takes three words and returns one: see tracee/local.ts. */
export function callNative(code: number, a: number, b: number, c: number): number {
  return Number(koffi.call(BigInt(code), nativeFunction, a, b, c));
}

/**
 * The same on a thread of Node's pool, while this one goes on. The code has to tell that it is done by itself, where somebody waits for
 * it without going back to the event loop.
 */
export function callNativeInBackground(code: number, a: number, b: number, c: number): void {
  const native = koffi.decode(BigInt(code), nativeFunction) as typeof rawSyscall;
  native.async(a, b, c, () => undefined);
}

/** A window on this process's memory; valid as long as the memory is mapped. */
export function memoryAt(address: number, length: number): Uint8Array {
  return new Uint8Array(koffi.view(BigInt(address), length));
}
