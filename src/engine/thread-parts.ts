// Threads that have not everything in common with their process: unshare(2) and setns(2) are a thread's own calls. A thread may have a
// current directory, a root and a umask of its own (CLONE_FS), which are kept in a field of ours; with descriptors or namespaces of
// its own it is refused. CRIU looks at none of it.

import { RepriseError } from "../errors.ts";
import type { FsEntry } from "../images/schema/messages.generated.ts";
import type { FrozenTask } from "../objects/task/task.ts";
import { ThreadLinks } from "../proc/thread-links.ts";
import { KCMP_FILES, KCMP_FS } from "../sys/abi/sched.ts";
import { syscallError } from "../sys/ffi.ts";
import { KernelOrder } from "../sys/process.ts";
import { ThreadFiles, type ThreadQuestion } from "../tracee/thread-files.ts";

/** Namespaces that a thread can enter alone: others want a process with a single thread, or show in its directories. */
const OF_THREADS = ["net", "uts", "ipc"] as const;

/**
 * Directories and umask of the threads that have their own, by thread. `describe` gives the number of a directory's file; `alike` are threads
 * that are known to have everything in common with the first.
 *
 * @throws RepriseError UNSUPPORTED
 */
export function collectThreadPlaces(
  task: FrozenTask,
  describe: (procPath: string) => number,
  alike: ReadonlySet<number> = NOBODY,
): ReadonlyMap<number, FsEntry> {
  const found = new Map<number, FsEntry>();
  const [leader, ...all] = task.threads;
  const others = all.filter(({ tid }) => !alike.has(tid));
  if (leader === undefined || others.length === 0) return found;
  const tids = [leader, ...others].map(({ tid }) => tid);
  using looks = new ThreadFiles(task.pid, tids, lookAtParts(leader.tid));
  using links = new ThreadLinks(task.pid);
  const own = looks
    .of(leader.tid)
    .namespaces.map((target, at) => Buffer.from(target ?? missing(links, leader.tid, at)));
  const seen = new KernelOrder<{ pid: number }>(KCMP_FS);
  for (const { tid, status } of others) {
    const { namespaces, files, fs } = looks.of(tid);
    if (isOther(files, task.pid)) throw refused(task, tid, "a table of descriptors of its own");
    const strange = OF_THREADS.find((_, at) => {
      const target = namespaces[at] ?? missing(links, tid, at);
      return !target.equals(own[at] as Buffer);
    });
    if (strange !== undefined) throw refused(task, tid, `a ${strange} namespace of its own`);
    if (!isOther(fs, task.pid)) continue;
    if (links.target(tid, "ns/mnt") !== links.target(leader.tid, "ns/mnt"))
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

const NOBODY: ReadonlySet<number> = new Set();

/** What a thread has, and how kcmp(2) compares it with the leader. */
interface Parts {
  /** What the links say; undefined where one cannot be read. */
  readonly namespaces: readonly (Buffer | undefined)[];
  readonly files: number;
  readonly fs: number;
}

function lookAtParts(leader: number): ThreadQuestion<Parts> {
  return (program, { tid, directory, path }) => {
    const asking = { mayFail: true };
    const links = OF_THREADS.map((kind) => {
      const into = program.output(LINK_ROOM);
      const args = [directory, path(`ns/${kind}`), into, LINK_ROOM];
      return { into, read: program.call("readlinkat", args, asking) };
    });
    const files = program.call("kcmp", [leader, tid, KCMP_FILES, 0, 0], asking);
    const fs = program.call("kcmp", [leader, tid, KCMP_FS, 0, 0], asking);
    return (answers) => ({
      namespaces: links.map(({ into, read }) => {
        const length = answers.value(read);
        return length < 0 ? undefined : answers.bytes(into, length);
      }),
      files: answers.value(files),
      fs: answers.value(fs),
    });
  };
}

/** `net:[4026531840]`. */
const LINK_ROOM = 64;

/** Reads a link again, for the reason why it cannot be read. */
function missing(links: ThreadLinks, tid: number, at: number): Buffer {
  return Buffer.from(links.target(tid, `ns/${OF_THREADS[at]}`));
}

function isOther(order: number, pid: number): boolean {
  if (order < 0) throw syscallError("kcmp", -order, `compare the threads of pid ${pid}`);
  return order !== 0;
}

function refused({ pid }: FrozenTask, tid: number, what: string): RepriseError {
  return new RepriseError("UNSUPPORTED", `cannot dump pid ${pid}: thread ${tid} has ${what}`, {
    pid,
    hint: "It was made by unshare or setns in one thread, and cannot be made again. Where it lasts only for a moment, try again.",
  });
}
