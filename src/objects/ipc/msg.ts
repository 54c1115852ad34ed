// System V message queues (msgsnd(2)): their messages are copied one by one at dump (MSG_COPY leaves them in the queue), and sent
// again in the same order. ipcns-msg-ID.img.

import { readAt } from "../../images/read-at.ts";
import type { ImageSetWriter } from "../../images/image-set.ts";
import type { ImageSetReader } from "../../images/image-set-reader.ts";
import { IPC_NOWAIT, IPC_SET, MSG_COPY, MSG_QBYTES, MSG_QNUM } from "../../sys/abi/ipc.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { control, describe, failed, makeWithId, objectIds, status, type IdMap } from "./sysv.ts";

/** struct msgbuf: an i64 type, then the text. */
const TYPE_SIZE = 8;

/** Saves all queues of the engine's own IPC namespace of the moment. */
export function writeMessageQueues(
  images: ImageSetWriter,
  namespace: { readonly id: number; readonly ids: IdMap },
): void {
  const image = images.open("ipcns-msg", namespace.id);
  for (const id of objectIds("msg")) {
    const bytes = status("msg", id);
    if (bytes === undefined) continue;
    const qnum = Number(bytes.readBigUInt64LE(MSG_QNUM));
    const qbytes = Number(bytes.readBigUInt64LE(MSG_QBYTES));
    image.add({ desc: describe(id, bytes, namespace.ids), qbytes, qnum });
    const buffer = Buffer.alloc(TYPE_SIZE + qbytes);
    for (let index = 0; index < qnum; index++) {
      const flags = IPC_NOWAIT | MSG_COPY;
      const msize = trySyscall("msgrcv", id, buffer, qbytes, index, flags);
      if (msize < 0) throw failed(`copy message ${index} of queue ${id}`, "msgrcv", -msize);
      const data = Buffer.from(buffer.subarray(TYPE_SIZE, TYPE_SIZE + msize));
      image.queueMessage({ mtype: buffer.readBigInt64LE(0), msize }, data);
    }
  }
  image.close();
}

/** Makes all saved queues in the engine's own IPC namespace of the moment. */
export function restoreMessageQueues(
  reader: ImageSetReader,
  namespace: { readonly id: number; readonly ids: IdMap },
): void {
  if (!reader.has("ipcns-msg", namespace.id)) return;
  const path = reader.path("ipcns-msg", namespace.id);
  for (const { value, payload } of reader.readWithPayload("ipcns-msg", namespace.id)) {
    const { desc, qbytes } = value;
    const what = `message queue ${desc.id}`;
    makeWithId("msg", { desc, what, ids: namespace.ids }, (flags) =>
      trySyscall("msgget", desc.key, flags),
    );
    setRoom(desc.id, qbytes);
    payload.forEach(({ offset, length, message }, index) => {
      const buffer = Buffer.alloc(TYPE_SIZE + length);
      buffer.writeBigInt64LE(BigInt.asIntN(64, message?.mtype ?? 1n), 0);
      readAt(path, offset, length).copy(buffer, TYPE_SIZE);
      const result = trySyscall("msgsnd", desc.id, buffer, length, IPC_NOWAIT);
      if (result < 0) throw failed(`send message ${index} of ${what} again`, "msgsnd", -result);
    });
  }
}

/** A queue may have been made larger or smaller than the namespace's limit (msgmnb). */
function setRoom(id: number, qbytes: number): void {
  const bytes = status("msg", id);
  if (bytes === undefined || Number(bytes.readBigUInt64LE(MSG_QBYTES)) === qbytes) return;
  bytes.writeBigUInt64LE(BigInt(qbytes), MSG_QBYTES);
  const result = control("msg", { id, command: IPC_SET, argument: bytes });
  if (result < 0) throw failed(`set the size of message queue ${id}`, "msgctl", -result);
}
