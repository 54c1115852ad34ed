// The network namespace of a socket: it stays in the one in which it was made, wherever its owner goes. The kernel tells it by
// SIOCGSKNS (net/socket.c). At dump the engine's own thread goes there for what only those inside are told, the lists of
// NETLINK_SOCK_DIAG above all; at restore the program that makes the socket does.

import { closeSync, fstatSync, openSync, statSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { AT_FDCWD, O_CLOEXEC, O_RDONLY } from "../../sys/abi/fcntl.ts";
import { CLONE_NEWNET } from "../../sys/abi/sched.ts";
import { SIOCGSKNS } from "../../sys/abi/tun.ts";
import {
  AF_UNIX,
  SO_NETNS_COOKIE,
  SOCK_CLOEXEC,
  SOCK_DGRAM,
  SOL_SOCKET,
} from "../../sys/abi/socket.ts";
import { EPERM } from "../../sys/errno.ts";
import { syscall, syscallError, trySyscall } from "../../sys/ffi.ts";
import { inNetNamespace } from "../../sys/net-namespace.ts";
import { getOption } from "../../sys/socket.ts";
import type { Program } from "../../tracee/program.ts";
import type { FilesDump, FilesRestore } from "../files/file-kind.ts";

export interface SocketNamespace {
  readonly inode: number;
  /** Its number in the images; undefined when there are no images of namespaces. */
  readonly id: number | undefined;
  /** Runs a step with the engine's own thread in it. */
  inside<T>(step: () => T): T;
}

const known = new WeakMap<FilesDump, Map<number, SocketNamespace>>();

/**
 * Of a socket or tun file of which the engine has the descriptor `fd`. The same object for all of one namespace in a dump.
 * @throws RepriseError UNSUPPORTED for a namespace that no task of the tree lives in
 */
export function socketNamespace(fd: number, dump: FilesDump): SocketNamespace {
  const cookies = byCookie.get(dump) ?? new Map<bigint, SocketNamespace>();
  byCookie.set(dump, cookies);
  // To open a namespace takes longer than all else that is asked of a socket. A tun file has no cookie.
  const cookie = namespaceCookie(fd);
  const found = cookie === undefined ? undefined : cookies.get(cookie);
  if (found !== undefined) return found;
  const namespace = openedNamespace(fd, dump);
  if (cookie !== undefined) {
    cookies.set(cookie, namespace);
    dump.atEnd(() => cookies.delete(cookie), { needsCopies: false });
  }
  return namespace;
}

const byCookie = new WeakMap<FilesDump, Map<bigint, SocketNamespace>>();

function openedNamespace(fd: number, dump: FilesDump): SocketNamespace {
  const opened = openNamespaceOf(fd);
  const inode = fstatSync(opened).ino;
  const seen = known.get(dump) ?? new Map<number, SocketNamespace>();
  known.set(dump, seen);
  const one = seen.get(inode);
  if (one !== undefined) {
    closeSync(opened);
    return one;
  }
  const forget = (): void => {
    closeSync(opened);
    seen.delete(inode);
  };
  dump.atEnd(forget, { needsCopies: false });
  const id = dump.namespaces?.idOf("net", inode);
  if (dump.namespaces !== undefined && id === undefined) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump a socket of network namespace net:[${inode}], in which no task of the tree lives`,
      {
        hint: "Let the process close it before the dump, or dump the tree that the namespace belongs to.",
      },
    );
  }
  const isOwn = statSync(OWN_NAMESPACE).ino === inode;
  const namespace: SocketNamespace = {
    inode,
    id,
    inside: (step) => inNetNamespace(isOwn ? undefined : opened, step),
  };
  seen.set(inode, namespace);
  return namespace;
}

const OWN_NAMESPACE = "/proc/thread-self/ns/net";

/** The ioctl takes CAP_NET_ADMIN in the namespace. Without it, a socket of the engine's own one can still be told by its cookie. */
function openNamespaceOf(fd: number): number {
  const opened = trySyscall("ioctl", fd, SIOCGSKNS, 0);
  if (opened >= 0) return opened;
  if (opened === -EPERM && isOfOwnNamespace(fd)) return openSync(OWN_NAMESPACE, "r");
  throw syscallError("ioctl", -opened, "find the network namespace of a socket (SIOCGSKNS)");
}

function isOfOwnNamespace(fd: number): boolean {
  const own = syscall("socket", AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  try {
    const [a, b] = [fd, own].map(namespaceCookie);
    return a !== undefined && a === b;
  } finally {
    closeSync(own);
  }
}

/** The number of a socket's network namespace (since Linux 5.14), which no other one ever gets. */
function namespaceCookie(fd: number): bigint | undefined {
  const cookie = getOption(fd, { level: SOL_SOCKET, name: SO_NETNS_COOKIE, size: 8 });
  return typeof cookie === "number" ? undefined : cookie.readBigUInt64LE(0);
}

/** Adds the calls of `step` so that what they make belongs to a namespace of the images. */
export function inSocketNamespace<T>(
  program: Program,
  where: { readonly id: number | undefined; readonly restore: FilesRestore },
  step: () => T,
): T {
  const { id, restore } = where;
  const { set } = restore;
  const home = set.tasks.get(set.rootPid)?.live?.ids.net_ns_id;
  // Sets of before 2017 do not tell.
  if (id === undefined || id === 0 || home === undefined || id === home) return step();
  const there = restore.namespaceFd?.("net", id);
  if (there === undefined) {
    throw new RepriseError(
      "BAD_IMAGE",
      `cannot restore a socket of network namespace ${id}: no task lives in it`,
    );
  }
  const label = "work in another network namespace";
  const back = restore.namespaceFd?.("net", home);
  const opened =
    back ??
    program.call("openat", [AT_FDCWD, program.string(OWN_NAMESPACE), O_RDONLY | O_CLOEXEC, 0], {
      label,
    });
  program.call("setns", [there, CLONE_NEWNET], { label });
  const result = step();
  program.call("setns", [opened, CLONE_NEWNET], { label });
  if (back === undefined) program.call("close", [opened]);
  return result;
}

/** Inode of the network namespace of a socket of the engine's. @throws RepriseError SYSCALL */
export function namespaceInode(fd: number): number {
  const opened = openNamespaceOf(fd);
  try {
    return fstatSync(opened).ino;
  } finally {
    closeSync(opened);
  }
}

/** Runs a step with the engine's own thread in the network namespace of a socket. @throws RepriseError SYSCALL */
export function besideSocket<T>(fd: number, step: () => T): T {
  const opened = openNamespaceOf(fd);
  try {
    const isOwn = statSync(OWN_NAMESPACE).ino === fstatSync(opened).ino;
    return inNetNamespace(isOwn ? undefined : opened, step);
  } finally {
    closeSync(opened);
  }
}
