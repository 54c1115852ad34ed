// How namespaces hang together, see ioctl_ns(2): each belongs to a user namespace, whose root rules it; those of pids and users are in
// another one of their kind.

import type { UsernsEntry } from "../../images/schema/messages.generated.ts";
import { F_DUPFD } from "../../sys/abi/fcntl.ts";
import { CLONE_NEWUSER } from "../../sys/abi/sched.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { Program } from "../../tracee/program.ts";
import { runPrograms } from "../../tracee/run.ts";
import { endProcess, startSeed, workAreaAt } from "../../tracee/seed.ts";
import { collectMaps } from "./user.ts";

/** linux/nsfs.h */
const NS_GET_USERNS = 0xb701;
const NS_GET_PARENT = 0xb702;
const NS_GET_OWNER_UID = 0xb704;

export type NamespaceRelation = "owner" | "parent";

/** Opens the namespace that one belongs to or is in; undefined when that is outside of the engine's. */
export function openRelated(fd: number, relation: NamespaceRelation): number | undefined {
  const request = relation === "owner" ? NS_GET_USERNS : NS_GET_PARENT;
  const related = trySyscall("ioctl", fd, request, 0);
  return related < 0 ? undefined : related;
}

/** The user who made a user namespace, in ids of the engine's own. */
export function ownerUid(fd: number): number {
  const uid = Buffer.alloc(4);
  syscall("ioctl", fd, NS_GET_OWNER_UID, uid);
  return uid.readUInt32LE(0);
}

/** Where nothing of a fresh process is. */
const HELPER_AREA = { address: 0x2000_0000_0000, size: 1024 * 1024 };

/** The maps of a user namespace that nobody lives in: a helper goes there, as they are shown of processes alone. */
export function mapsOfEmpty(fd: number): UsernsEntry {
  return visit({ fd, flag: CLONE_NEWUSER, look: collectMaps });
}

/** Has a helper enter a namespace, and looks at it: some things are shown of processes that live there alone. */
export function visit<T>({ fd, flag, look }: Visit<T>): T {
  // The helper inherits it.
  const inherited = syscall("fcntl", fd, F_DUPFD, 3);
  try {
    const area = workAreaAt(HELPER_AREA.address, HELPER_AREA.size);
    const seed = startSeed(area, { stops: 0, remoteCalls: 0 });
    try {
      const program = new Program();
      program.call("setns", [inherited, flag], { label: "enter a namespace" });
      runPrograms([{ tracee: seed, program, code: area.code, base: area.programs, frame: 0 }]);
      return look(seed.tid);
    } finally {
      endProcess(seed.tid);
    }
  } finally {
    trySyscall("close", inherited);
  }
}

interface Visit<T> {
  readonly fd: number;
  readonly flag: number;
  /** Gets the helper's pid. */
  readonly look: (pid: number) => T;
}
