// What the three kinds of System V IPC have in common (sysvipc(7)): a list in /proc/sysvipc, owner and mode, and an id that the next
// object gets on request (CONFIG_CHECKPOINT_RESTORE). All of it is done by the engine, in the objects' IPC namespace.

import { readFileSync, writeFileSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import type { IpcDescEntry } from "../../images/schema/messages.generated.ts";
import * as ipc from "../../sys/abi/ipc.ts";
import { errnoName } from "../../sys/errno.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { withEffectiveIds } from "../../sys/process.ts";

export type SysvKind = "shm" | "sem" | "msg";

export const SYSV_KINDS: readonly SysvKind[] = ["shm", "sem", "msg"];

/** User and group ids outside of the tree's user namespace for those in the images, or the other way round. */
export interface IdMap {
  uid(id: number): number;
  gid(id: number): number;
}

export const SAME_IDS: IdMap = { uid: (id) => id, gid: (id) => id };

const SIZES: Readonly<Record<SysvKind, number>> = {
  shm: ipc.SHMID_DS_SIZE,
  sem: ipc.SEMID_DS_SIZE,
  msg: ipc.MSQID_DS_SIZE,
};

/** Ids of all objects of a kind in the engine's own IPC namespace. */
export function objectIds(kind: SysvKind): number[] {
  return idsIn(readFileSync(listPath(kind), "utf8"));
}

/** The list of the objects in the IPC namespace of who opens it. */
export function listPath(kind: SysvKind): string {
  return `/proc/sysvipc/${kind}`;
}

/** The ids in a list: it has a heading, and the second column is the id. */
export function idsIn(list: string): number[] {
  const lines = list.trim().split("\n").slice(1);
  return lines.map((line) => Number(line.trim().split(/\s+/)[1]));
}

/** struct shmid_ds and its like; undefined when there is no such object. */
export function status(kind: SysvKind, id: number): Buffer | undefined {
  const bytes = Buffer.alloc(SIZES[kind]);
  return control(kind, { id, command: ipc.IPC_STAT, argument: bytes }) < 0 ? undefined : bytes;
}

export function control(
  kind: SysvKind,
  call: { readonly id: number; readonly command: number; readonly argument: Buffer | number },
): number {
  const { id, command, argument } = call;
  if (kind === "sem") return trySyscall("semctl", id, 0, command, argument);
  return trySyscall(kind === "shm" ? "shmctl" : "msgctl", id, command, argument);
}

/** The description of an object. */
export function describe(id: number, bytes: Buffer, ids: IdMap): IpcDescEntry {
  return {
    key: bytes.readUInt32LE(ipc.PERM_KEY),
    uid: ids.uid(bytes.readUInt32LE(ipc.PERM_UID)),
    gid: ids.gid(bytes.readUInt32LE(ipc.PERM_GID)),
    cuid: ids.uid(bytes.readUInt32LE(ipc.PERM_CUID)),
    cgid: ids.gid(bytes.readUInt32LE(ipc.PERM_CGID)),
    mode: bytes.readUInt32LE(ipc.PERM_MODE),
    id,
  };
}

/**
 * Makes an object with a saved id, by `make`, and gives it its owner and mode.
 *
 * @throws RepriseError SYSCALL
 */
export function makeWithId(
  kind: SysvKind,
  { desc, what, ids }: { readonly desc: IpcDescEntry; readonly what: string; readonly ids: IdMap },
  make: (flags: number) => number,
): void {
  // The kernel forgets the wish after the next object.
  writeFileSync(`/proc/sys/kernel/${kind}_next_id`, String(desc.id));
  const flags = ipc.IPC_CREAT | ipc.IPC_EXCL | (desc.mode & 0o777);
  const id = asCreator(desc, ids, () => make(flags));
  if (id < 0) throw failed(`make ${what}`, `${kind}get`, -id);
  if (id !== desc.id) {
    control(kind, { id, command: ipc.IPC_RMID, argument: 0 });
    throw new RepriseError(
      "SYSCALL",
      `cannot make ${what}: ${kind}get: it got the id ${id} instead of ${desc.id}`,
      { syscall: `${kind}get`, hint: "Another object has this id." },
    );
  }
  setOwner(kind, { id, desc, what, ids });
}

/** Runs `make` with the ids of who made the object once, who may do with it what its owner may. */
export function asCreator<T>({ cuid, cgid }: IpcDescEntry, ids: IdMap, make: () => T): T {
  const [uid, gid] = [ids.uid(cuid), ids.gid(cgid)];
  if (uid === process.geteuid?.() && gid === process.getegid?.()) return make();
  return withEffectiveIds({ uid, gid }, make);
}

export function setOwner(
  kind: SysvKind,
  {
    id,
    desc,
    what,
    ids,
  }: {
    readonly id: number;
    readonly desc: IpcDescEntry;
    readonly what: string;
    readonly ids: IdMap;
  },
): void {
  const bytes = status(kind, id);
  if (bytes === undefined) throw failed(`look at ${what}`, `${kind}ctl`, 0);
  bytes.writeUInt32LE(ids.uid(desc.uid), ipc.PERM_UID);
  bytes.writeUInt32LE(ids.gid(desc.gid), ipc.PERM_GID);
  bytes.writeUInt32LE(desc.mode & 0o777, ipc.PERM_MODE);
  const result = control(kind, { id, command: ipc.IPC_SET, argument: bytes });
  if (result < 0) throw failed(`set the owner of ${what}`, `${kind}ctl`, -result);
}

export function failed(what: string, call: string, errno: number): RepriseError {
  const name = errnoName(errno);
  return new RepriseError("SYSCALL", `cannot ${what}: ${call}: ${name}`, {
    syscall: call,
    errno: name,
    hint: "A limit of the IPC namespace (sysctl kernel.shmmni, kernel.sem, kernel.msgmni) may be reached.",
  });
}
