// System V semaphores: sets of counters (semop(2)). Who waits for one waits on after the restore, in a system call made again; what is
// to be undone at a task's end (SEM_UNDO) has been undone by the end of the dumped task. ipcns-sem-ID.img.

import { readAt } from "../../images/read-at.ts";
import type { ImageSetWriter } from "../../images/image-set.ts";
import type { ImageSetReader } from "../../images/image-set-reader.ts";
import { GETALL, SEM_NSEMS, SEM_OTIME, SETALL } from "../../sys/abi/ipc.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { control, describe, failed, makeWithId, objectIds, status, type IdMap } from "./sysv.ts";

/** Bytes of a counter (u16), and what the image is filled up to. */
const COUNTER_SIZE = 2;
const PADDING = 8;

/** Saves all sets of the engine's own IPC namespace of the moment. */
export function writeSemaphores(
  images: ImageSetWriter,
  namespace: { readonly id: number; readonly ids: IdMap },
): void {
  const image = images.open("ipcns-sem", namespace.id);
  for (const id of objectIds("sem")) {
    const bytes = status("sem", id);
    if (bytes === undefined) continue;
    const nsems = Number(bytes.readBigUInt64LE(SEM_NSEMS));
    const values = Buffer.alloc(nsems * COUNTER_SIZE);
    const result = control("sem", { id, command: GETALL, argument: values });
    if (result < 0) throw failed(`read semaphore set ${id}`, "semctl", -result);
    // Programs take it for the sign that the one who made the set has given it its first values.
    const used = bytes.readBigUInt64LE(SEM_OTIME) !== 0n;
    image.add({
      desc: describe(id, bytes, namespace.ids),
      nsems,
      ...(used ? { used } : {}),
    });
    image.payload(values);
    image.pad(PADDING);
  }
  image.close();
}

/** Makes all saved sets in the engine's own IPC namespace of the moment. */
export function restoreSemaphores(
  reader: ImageSetReader,
  namespace: { readonly id: number; readonly ids: IdMap },
): void {
  if (!reader.has("ipcns-sem", namespace.id)) return;
  const path = reader.path("ipcns-sem", namespace.id);
  for (const { value, payload } of reader.readWithPayload("ipcns-sem", namespace.id)) {
    const { desc, nsems } = value;
    const what = `semaphore set ${desc.id}`;
    makeWithId("sem", { desc, what, ids: namespace.ids }, (flags) =>
      trySyscall("semget", desc.key, nsems, flags),
    );
    const [part] = payload;
    const values = readAt(path, part?.offset ?? 0, nsems * COUNTER_SIZE);
    const result = control("sem", { id: desc.id, command: SETALL, argument: values });
    if (result < 0) throw failed(`set the values of ${what}`, "semctl", -result);
    if (value.used === true) use(desc.id, values, what);
  }
}

/** An operation that changes nothing: the kernel notes its time. */
function use(id: number, values: Buffer, what: string): void {
  const first = values.readUInt16LE(0) > 0 ? -1 : 1;
  // Two struct sembuf: number, change, flags.
  const changes = Buffer.alloc(12);
  changes.writeInt16LE(first, 2);
  changes.writeInt16LE(-first, 8);
  const result = trySyscall("semop", id, changes, 2);
  if (result < 0) throw failed(`use ${what}`, "semop", -result);
}
