// Telling who is not saved with a container, though it is in it: processes that somebody has brought in from outside (docker exec, runc
// exec, nsenter). Their parents are outside, so they are not in the tree, and nobody could make them again as they were.

import { log } from "../log.ts";
import { Fstype } from "../images/schema/messages.generated.ts";
import type { MountNamespaces } from "../objects/mounts/collect.ts";
import type { LandlockWatch } from "../objects/task/landlock.ts";
import type { FrozenTask } from "../objects/task/task.ts";
import { readNamespace } from "../proc/ns.ts";
import { parseStat } from "../proc/stat.ts";
import { readStatusIfAlive } from "../proc/status.ts";
import { readPids } from "../proc/tasks.ts";
import { readLink, readText } from "../sys/files.ts";
import type { FrozenTree } from "./freeze.ts";

/** Tells of those in the tree's frozen cgroup, and, where the root task is the first of its pid namespace, of all that are in this. */
export function tellStrangers(
  tree: FrozenTree,
  mounts: MountNamespaces,
  landlock: LandlockWatch | undefined,
): void {
  const [root] = tree.tasks;
  if (root === undefined) return;
  const told = new Set<number>();
  const proc = procOf(root, mounts);
  if (proc !== undefined) {
    const inTree = new Set(tree.tasks.map(({ innerPid }) => innerPid));
    const ours = landlock?.helpersIn(readNamespace(root.pid, "pid"));
    for (const pid of readPids(proc)) {
      if (inTree.has(pid) || ours?.has(pid) === true) continue;
      const comm = nameOf(`${proc}/${pid}`);
      if (comm === undefined) continue;
      told.add(pid);
      tell(`process ${pid} of the container's pid namespace (${comm})`);
    }
  }
  const depth = root.status.nsPid.length - 1;
  for (const pid of tree.bystanders.pids) {
    const status = readStatusIfAlive(pid);
    if (status === undefined || (proc !== undefined && told.has(status.nsPid[depth] ?? 0)))
      continue;
    tell(`pid ${pid} (${status.name}), which is in the container's cgroup,`);
  }
}

function tell(who: string): void {
  log.loss(`${who} came from outside (docker exec, nsenter), and is not saved`);
}

/** Where the proc file system of the tree's own pid namespace is mounted in it, if its root task is the first there. */
function procOf(
  { pid, innerPid, status }: FrozenTask,
  mounts: MountNamespaces,
): string | undefined {
  if (innerPid !== 1 || status.nsPid.length === 1) return undefined;
  const own = mounts.ofTask(pid);
  // The topmost comes first. What is no proc file system may have a server behind it that stands still now.
  const mount = own?.entries.find(({ mountpoint }) => mountpoint === "/proc");
  if (own === undefined || mount?.fstype !== Fstype.PROC || mount.root !== "/") return undefined;
  const proc = `${own.prefix}/proc`;
  const shown = readLink(`${proc}/1/ns/pid`);
  return typeof shown === "string" && shown === readLink(`/proc/${pid}/ns/pid`) ? proc : undefined;
}

/** What a process that runs is called. */
function nameOf(directory: string): string | undefined {
  const text = readText(`${directory}/stat`);
  if (typeof text !== "string") return undefined;
  const { comm, state } = parseStat(text);
  return state === "Z" || state === "X" ? undefined : comm;
}
