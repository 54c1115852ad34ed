// Settings in /proc/sys that a pid or user namespace has for itself, and that only its own processes see: kernel.pid_max (Linux 6.14),
// vm.memfd_noexec, and the limits in user (proc_sys_user(5)). No image holds them: memfd_noexec and the limits would be in the way of the
// restore itself. The tree's root task is asked, and what is not as in a new namespace is told.

import { readFileSync } from "node:fs";
import { log } from "../../log.ts";
import { readNamespace } from "../../proc/ns.ts";
import { AT_FDCWD, O_CLOEXEC, O_RDONLY } from "../../sys/abi/fcntl.ts";
import type { Program } from "../../tracee/program.ts";
import type { Probe } from "../probe.ts";
import type { FrozenTask } from "../task/task.ts";

const OF_PIDS = ["kernel/pid_max", "vm/memfd_noexec"];
const OF_USERS = [
  "cgroup_namespaces",
  "fanotify_groups",
  "fanotify_marks",
  "inotify_instances",
  "inotify_watches",
  "ipc_namespaces",
  "mnt_namespaces",
  "net_namespaces",
  "pid_namespaces",
  "time_namespaces",
  "user_namespaces",
  "uts_namespaces",
].map((name) => `user/max_${name}`);

/** What they are in a new namespace, besides what they are in the one that it is in. */
const FRESH = ["2147483647", "4194304"];
const VALUE_SIZE = 32;

/** Adds the questions to the root task's program; nothing for other tasks. */
export function tellNamespaceSettings(program: Program, task: FrozenTask): Probe<void> {
  if (task.parent !== undefined) return () => undefined;
  const names = [
    ...(task.status.nsPid.length > 1 ? OF_PIDS : []),
    ...(readNamespace(task.pid, "user") === readNamespace(process.pid, "user") ? [] : OF_USERS),
  ];
  const asked = names.map((name) => ({ name, ...ask(program, name) }));
  return (result) => {
    for (const { name, read, text } of asked) {
      // A tree without /proc cannot tell.
      const length = result.value(read);
      const value = result
        .bytes(text, VALUE_SIZE)
        .toString("latin1", 0, Math.max(length, 0))
        .trim();
      if (value === "" || FRESH.includes(value) || value === ownValue(name)) continue;
      log.loss(`pid ${task.innerPid}: its namespace's setting ${name} (${value}) is not saved`);
    }
  };
}

function ask(program: Program, name: string) {
  const options = { label: `read the setting ${name}`, mayFail: true };
  const path = program.string(`/proc/sys/${name}`);
  const text = program.output(VALUE_SIZE);
  const fd = program.call("openat", [AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0], options);
  const read = program.call("read", [fd, text, VALUE_SIZE], options);
  program.call("close", [fd], options);
  return { read, text };
}

function ownValue(name: string): string | undefined {
  try {
    return readFileSync(`/proc/sys/${name}`, "latin1").trim();
  } catch {
    return undefined; // not on this kernel
  }
}
