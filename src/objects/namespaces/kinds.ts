// The kinds of namespaces, see namespaces(7): their flags for clone, unshare and setns, their links in /proc/PID/ns, and the
// fields of ids-PID.img that tell in which one a task lived.

import type { TaskKobjIdsEntry } from "../../images/schema/messages.generated.ts";
import type { NamespaceInodes, NamespaceLink } from "../../proc/ns.ts";
import {
  CLONE_NEWCGROUP,
  CLONE_NEWIPC,
  CLONE_NEWNET,
  CLONE_NEWNS,
  CLONE_NEWPID,
  CLONE_NEWTIME,
  CLONE_NEWUSER,
  CLONE_NEWUTS,
} from "../../sys/abi/sched.ts";

export type NamespaceKind = "pid" | "net" | "ipc" | "uts" | "time" | "mnt" | "user" | "cgroup";

export interface KindOfNamespace {
  readonly kind: NamespaceKind;
  readonly flag: number;
  readonly field: keyof TaskKobjIdsEntry;
}

/**
 * In the order in which CRIU numbers the namespaces of a task. A task may have another one of each than the root task; CRIU restores
 * sets with further mount and network namespaces only.
 */
export const NAMESPACE_KINDS: readonly KindOfNamespace[] = [
  { kind: "pid", flag: CLONE_NEWPID, field: "pid_ns_id" },
  { kind: "net", flag: CLONE_NEWNET, field: "net_ns_id" },
  { kind: "ipc", flag: CLONE_NEWIPC, field: "ipc_ns_id" },
  { kind: "uts", flag: CLONE_NEWUTS, field: "uts_ns_id" },
  { kind: "time", flag: CLONE_NEWTIME, field: "time_ns_id" },
  { kind: "mnt", flag: CLONE_NEWNS, field: "mnt_ns_id" },
  { kind: "user", flag: CLONE_NEWUSER, field: "user_ns_id" },
  { kind: "cgroup", flag: CLONE_NEWCGROUP, field: "cgroup_ns_id" },
];

/** Flag, field and rules of a kind. */
export function kindOfNamespace(kind: NamespaceKind): KindOfNamespace {
  return NAMESPACE_KINDS.find((known) => known.kind === kind) as KindOfNamespace;
}

/** The inode of a task's namespace of a kind; undefined where the kernel has none. */
export function inodeOfKind(inodes: NamespaceInodes, kind: NamespaceKind): number | undefined {
  return inodes[kind satisfies NamespaceLink];
}

/** `net[4026532000]:KEY` in the list of external things: the key under which a namespace is left to the restoring side. */
export function externalKey(
  external: readonly string[],
  kind: NamespaceKind,
  inode: number,
): string | undefined {
  const prefix = `${kind}[${inode}]:`;
  return external.find((one) => one.startsWith(prefix))?.slice(prefix.length);
}
