// Threads that have not everything in common with their process: unshare(2) and setns(2) are a thread's own calls. A thread may have a
// current directory, a root and a umask of its own (CLONE_FS), which are kept in a field of ours; with descriptors or namespaces of
// its own it is refused. CRIU looks at none of it.

import { RepriseError } from "../errors.ts";
import type { FsEntry } from "../images/schema/messages.generated.ts";
import type { FrozenTask, FrozenThread } from "../objects/task/task.ts";
import { ThreadLinks } from "../proc/thread-links.ts";
import { KCMP_FILES, KCMP_FS } from "../sys/abi/sched.ts";
import { kcmp, KernelOrder } from "../sys/process.ts";

/** Namespaces that a thread can enter alone: others want a process with a single thread, or show in its directories. */
const OF_THREADS = ["net", "uts", "ipc"] as const;

/**
 * Directories and umask of the threads that have their own, by thread. `describe` gives the number of a directory's file.
 *
 * @throws RepriseError UNSUPPORTED
 */
export function collectThreadPlaces(
  task: FrozenTask,
  describe: (procPath: string) => number,
): ReadonlyMap<number, FsEntry> {
  const found = new Map<number, FsEntry>();
  const [leader, ...others] = task.threads;
  if (leader === undefined || others.length === 0) return found;
  using links = new ThreadLinks(task.pid);
  const namespaceOf = ({ tid }: FrozenThread, kind: string): string =>
    links.target(tid, `ns/${kind}`);
  const own = OF_THREADS.map((kind) => namespaceOf(leader, kind));
  const seen = new KernelOrder<{ pid: number }>(KCMP_FS);
  for (const thread of others) {
    const { tid, status } = thread;
    const differs = (type: number): boolean => kcmp({ pid: leader.tid }, { pid: tid }, type) !== 0;
    if (differs(KCMP_FILES)) throw refused(task, tid, "a table of descriptors of its own");
    const strange = OF_THREADS.find((kind, at) => namespaceOf(thread, kind) !== own[at]);
    if (strange !== undefined) throw refused(task, tid, `a ${strange} namespace of its own`);
    if (!differs(KCMP_FS)) continue;
    if (namespaceOf(thread, "mnt") !== namespaceOf(leader, "mnt"))
      throw refused(task, tid, "a mount namespace of its own");
    if (seen.findOrAdd({ pid: tid }) !== undefined)
      throw refused(task, tid, "a current directory that it shares with some threads only");
    const at = `/proc/${task.pid}/task/${tid}`;
    found.set(tid, {
      cwd_id: describe(`${at}/cwd`),
      root_id: describe(`${at}/root`),
      umask: status.umask ?? 0o22,
    });
  }
  return found;
}

function refused({ pid }: FrozenTask, tid: number, what: string): RepriseError {
  return new RepriseError("UNSUPPORTED", `cannot dump pid ${pid}: thread ${tid} has ${what}`, {
    pid,
    hint: "It was made by unshare or setns in one thread, and cannot be made again. Where it lasts only for a moment, try again.",
  });
}
