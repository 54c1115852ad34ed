// `--exec-cmd`: this process becomes another program, so that the program is the restored task's parent.
// execve ends Node's other threads; what Node changed in the process is put back before.

import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { RepriseError } from "../errors.ts";
import { SIG_SETMASK, SIGSET_SIZE } from "../sys/abi/signal.ts";
import { addressOf, syscall, trySyscall } from "../sys/ffi.ts";
import { writeU64 } from "../sys/memory.ts";

/** SIGPIPE and SIGXFSZ: Node ignores them, and an ignored signal stays ignored in the new program. */
const IGNORED_BY_NODE = [13, 25];
const KERNEL_SIGACTION = 32;
const F_SETFD = 2;

/**
 * Replaces this process by a command, which is looked for in PATH.
 *
 * @throws RepriseError BAD_ARGUMENT when it is not found, SYSCALL when it cannot be executed.
 */
export function becomeProgram(
  command: readonly string[],
  options: {
    /** Standard output and errors of the program. @default those of this process */
    readonly output?: number;
  } = {},
): never {
  const path = findProgram(command[0] ?? "");
  for (const signal of IGNORED_BY_NODE) {
    trySyscall("rt_sigaction", signal, Buffer.alloc(KERNEL_SIGACTION), 0, SIGSET_SIZE);
  }
  trySyscall("rt_sigprocmask", SIG_SETMASK, Buffer.alloc(SIGSET_SIZE), 0, SIGSET_SIZE);
  if (options.output !== undefined) {
    for (const fd of [1, 2]) if (fd !== options.output) syscall("dup3", options.output, fd, 0);
  }
  // Node marks every descriptor that it inherits as close-on-exec.
  for (const fd of [0, 1, 2]) trySyscall("fcntl", fd, F_SETFD, 0);
  const environment = Object.entries(process.env).map(([name, value]) => `${name}=${value ?? ""}`);
  const argv = stringArray(command);
  const envp = stringArray(environment);
  syscall("execve", Buffer.from(`${path}\0`), argv.pointers, envp.pointers);
  throw new RepriseError(
    "INTERNAL",
    `execve of ${path} came back (${argv.strings.length} arguments)`,
  );
}

function findProgram(name: string): string {
  const places = name.includes("/")
    ? [""]
    : (process.env["PATH"] ?? "/usr/bin:/bin").split(delimiter);
  for (const place of places) {
    const path = join(place, name);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      continue;
    }
  }
  throw new RepriseError("BAD_ARGUMENT", `cannot execute ${name}: no such program`, {
    hint: "The command behind -- must be in PATH or be a path.",
  });
}

/** char *[] with a null at its end; the strings must live as long as the pointers are used. */
function stringArray(texts: readonly string[]): { pointers: Buffer; strings: Buffer[] } {
  const strings = texts.map((text) => Buffer.from(`${text}\0`));
  const pointers = Buffer.alloc((strings.length + 1) * 8);
  strings.forEach((string, index) => writeU64(pointers, index * 8, addressOf(string)));
  return { pointers, strings };
}
