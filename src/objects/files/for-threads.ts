// Which open files need threads to be there.

import type { FileEntry } from "../../images/schema/messages.generated.ts";
import { isOwnedByThread } from "./owner.ts";
import { isThreadPidfd } from "./pidfd.ts";
import { isOfThread } from "./proc-of-task.ts";

/** Whether a file is a handle of a thread, of its directory in /proc, or gives its signals to one. */
export function isForThreads(entry: FileEntry, tasks: ReadonlyMap<number, unknown>): boolean {
  return isThreadPidfd(entry) || isOfThread(entry) || isOwnedByThread(entry, tasks);
}
