// The engine's own thread in another namespace for a moment: setns(2) holds for the calling thread, and all that the engine does
// synchronously happens in this one. It costs no stop of the tree, and in the namespace the engine keeps all its capabilities.
// Mount namespaces need a root and current directory that no other thread shares, so those are unshared once. Pid and
// time namespaces count for children only, and user namespaces do not let a process with threads in.

import { closeSync, fstatSync, openSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { O_DIRECTORY, O_PATH } from "../../sys/abi/fcntl.ts";
import { CLONE_FS } from "../../sys/abi/sched.ts";
import { errnoName } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { Witness } from "../../tracee/witness.ts";
import { kindOfNamespace } from "./kinds.ts";

/** Kinds that a thread can enter by itself. */
export type EnterableKind = "net" | "ipc" | "uts" | "mnt" | "cgroup";

/**
 * Runs `action`, which must not be asynchronous, in another namespace: that of /proc/PID/ns/KIND, or of a descriptor of the engine's.
 *
 * @throws RepriseError SYSCALL when the namespace cannot be entered
 */
export function inNamespace<T>(
  kind: EnterableKind,
  where: { readonly pid: number } | { readonly fd: number },
  action: () => T,
): T {
  if (kind === "mnt") ownDirectories();
  const { flag } = kindOfNamespace(kind);
  const own = openSync(`/proc/self/ns/${kind}`, "r");
  const cwd = kind === "mnt" ? openSync(".", O_PATH | O_DIRECTORY) : undefined;
  const root = kind === "mnt" ? openSync("/", O_PATH | O_DIRECTORY) : undefined;
  const there = "fd" in where ? where.fd : openSync(`/proc/${where.pid}/ns/${kind}`, "r");
  try {
    // It takes privileges to go even where one is. A mount namespace is also entered for its root directory.
    if (kind !== "mnt" && fstatSync(own).ino === fstatSync(there).ino) return action();
    enter(there, flag, kind);
    try {
      return action();
    } finally {
      enter(own, flag, kind);
      // setns put the root and current directory to the root of the namespace.
      if (root !== undefined && cwd !== undefined) {
        syscall("fchdir", root);
        syscall("chroot", Buffer.from(".\0"));
        syscall("fchdir", cwd);
      }
    }
  } finally {
    if (!("fd" in where)) closeSync(there);
    for (const fd of [own, cwd, root]) if (fd !== undefined) closeSync(fd);
  }
}

/**
 * A first look at what a namespace of /proc/PID/ns/KIND shows, by calls that `looks` adds; undefined when it finds more than it can
 * hold. The namespace lives as long as that.
 */
export function witnessIn(
  kind: Exclude<EnterableKind, "mnt">,
  pid: number,
  looks: (witness: Witness) => void,
): Witness | undefined {
  const witness = new Witness();
  try {
    const home = witness.keep(openSync(`/proc/self/ns/${kind}`, "r"));
    const fd = witness.keep(openSync(`/proc/${pid}/ns/${kind}`, "r"));
    const { flag } = kindOfNamespace(kind);
    inNamespace(kind, { fd }, () => witness.within({ fd, home, flag }, () => looks(witness)));
    if (witness.take()) return witness;
    witness[Symbol.dispose]();
    return undefined;
  } catch (error) {
    witness[Symbol.dispose]();
    throw error;
  }
}

function enter(fd: number, flag: number, kind: EnterableKind): void {
  const result = trySyscall("setns", fd, flag);
  if (result === 0) return;
  throw new RepriseError(
    "SYSCALL",
    `cannot enter a ${kind} namespace: setns: ${errnoName(-result)}`,
    {
      syscall: "setns",
      errno: errnoName(-result),
      hint: "This needs CAP_SYS_ADMIN, for mount namespaces CAP_SYS_CHROOT too: run as root.",
    },
  );
}

let hasOwnDirectories = false;

function ownDirectories(): void {
  if (hasOwnDirectories) return;
  syscall("unshare", CLONE_FS);
  hasOwnDirectories = true;
}
