// Which open files need threads to be there.

import type { LoadedSet } from "../../images/check-set.ts";
import { FdTypes, type FileEntry } from "../../images/schema/messages.generated.ts";
import { isOwnedByThread } from "./owner.ts";
import { isThreadPidfd } from "./pidfd.ts";
import { isOfThread } from "./proc-of-task.ts";

/** Whether a file is a handle of a thread, of its directory in /proc, or gives its signals to one. */
export function isForThreads(entry: FileEntry, set: LoadedSet): boolean {
  return (
    isThreadPidfd(entry) || isOfThread(entry) || isOwnedByThread(ownedEntry(entry, set), set.tasks)
  );
}

/** The owner of a FIFO stands in the entry of its path. */
function ownedEntry(entry: FileEntry, { regularFiles }: LoadedSet): FileEntry {
  const reg =
    entry.fifo === undefined ? undefined : regularFiles.get(entry.fifo.regf_id ?? entry.id);
  return reg === undefined ? entry : { type: FdTypes.REG, id: entry.id, reg };
}
