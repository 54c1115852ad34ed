// How namespaces hang together, see ioctl_ns(2): each belongs to a user namespace, whose root rules it; those of pids and users are in
// another one of their kind.

import { closeSync, fstatSync, openSync } from "node:fs";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import type { NamespaceKind } from "./kinds.ts";

/** linux/nsfs.h */
const NS_GET_USERNS = 0xb701;
const NS_GET_PARENT = 0xb702;
const NS_GET_OWNER_UID = 0xb704;

export type NamespaceRelation = "owner" | "parent";

/** The inode of the namespace that one of a task's belongs to or is in; undefined when that is outside of the engine's. */
export function relatedInode(
  pid: number,
  kind: NamespaceKind,
  relation: NamespaceRelation,
): number | undefined {
  const fd = openSync(`/proc/${pid}/ns/${kind}`, "r");
  try {
    const request = relation === "owner" ? NS_GET_USERNS : NS_GET_PARENT;
    const related = trySyscall("ioctl", fd, request, 0);
    if (related < 0) return undefined;
    try {
      return fstatSync(related).ino;
    } finally {
      closeSync(related);
    }
  } finally {
    closeSync(fd);
  }
}

/** The user who made a task's user namespace, in ids of the engine's own. */
export function ownerUid(pid: number): number {
  const fd = openSync(`/proc/${pid}/ns/user`, "r");
  try {
    const uid = Buffer.alloc(4);
    syscall("ioctl", fd, NS_GET_OWNER_UID, uid);
    return uid.readUInt32LE(0);
  } finally {
    closeSync(fd);
  }
}
