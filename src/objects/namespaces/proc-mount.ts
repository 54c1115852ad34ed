// The /proc of a pid namespace. A mounted proc file system shows the pids of the namespace that mounted it, so a tree in a
// new pid namespace gets a mount namespace too, in which only /proc differs: see pid_namespaces(7), mount_namespaces(7).
// A dump accepts a mount namespace that has nothing else of its own, saves it as the engine's, and a restore makes it again. What has
// been mounted outside since does not appear in it where the mounts of outside are not shared; after a restore it does.

import { log } from "../../log.ts";
import { readMountinfo, type Mount } from "../../proc/mountinfo.ts";
import { MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_REC, MS_SLAVE } from "../../sys/abi/mount.ts";
import type { Program } from "../../tracee/program.ts";

const PROC = "/proc";

/**
 * The first mount of a process that the engine has not, /proc left out; undefined when there is none. Throws like readMountinfo.
 * What is mounted where is compared; ids, propagation and the order of mounting differ between any two namespaces.
 */
export function foreignMount(pid: number): string | undefined {
  const theirs = readMountinfo(pid);
  const missing = countByKey(readMountinfo(process.pid));
  for (const mount of theirs.filter(isOutsideProc)) {
    const key = keyOf(mount);
    const count = missing.get(key) ?? 0;
    if (count === 0) return `${mount.mountPoint} (${mount.fsType})`;
    if (count === 1) missing.delete(key);
    else missing.set(key, count - 1);
  }
  if (missing.size > 0)
    log.info(`pid ${pid} does not see ${missing.size} mounts of outside; after a restore it does`);
  return undefined;
}

/**
 * Gives the process's new mount namespace a /proc of its new pid namespace. Mounts of outside still appear in it, its own
 * not outside: without that the second call must not be made.
 */
export function mountFreshProc(program: Program): void {
  program.call("mount", [0, program.string("/"), 0, MS_REC | MS_SLAVE, 0], {
    label: "keep mounts inside of a new mount namespace",
  });
  const type = program.string("proc");
  const flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  program.call("mount", [type, program.string(PROC), type, flags, 0], {
    label: "mount the /proc of a new pid namespace",
  });
}

function isOutsideProc({ mountPoint }: Mount): boolean {
  return mountPoint !== PROC && !mountPoint.startsWith(`${PROC}/`);
}

function keyOf({ devMajor, devMinor, root, mountPoint, fsType }: Mount): string {
  return JSON.stringify([devMajor, devMinor, root, mountPoint, fsType]);
}

function countByKey(mounts: readonly Mount[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const mount of mounts.filter(isOutsideProc))
    counts.set(keyOf(mount), (counts.get(keyOf(mount)) ?? 0) + 1);
  return counts;
}
