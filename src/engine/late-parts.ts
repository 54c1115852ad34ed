// The end of a restore for files of which a part belongs to one process or thread, when all tasks have their descriptors and
// credentials: io_uring rings, what is registered with rings, and notifications of message queues, which end when their owner closes any
// descriptor of the queue. The epolls of such a tree are filled after that, since they may watch a ring. It takes each thread two
// programs, whatever there is of such files.

import { closeSync } from "node:fs";
import { RepriseError } from "../errors.ts";
import type { FileEntry } from "../images/schema/messages.generated.ts";
import { notifiedProcess, restoreNotification } from "../objects/files/mqueue.ts";
import {
  beginRequests,
  hasOwnerPart,
  LateRing,
  type RingOwner,
} from "../objects/io-uring/owned-ring.ts";
import { VMA_FILE_SHARED } from "../objects/memory/vma.ts";
import { syscall } from "../sys/ffi.ts";
import { Program } from "../tracee/program.ts";
import { ownsTable, settleFiles } from "./fill.ts";
import type { Growth } from "./growth.ts";
import { runRoomy } from "./helpers.ts";
import type { OpenedFiles } from "./open-files.ts";
import type { RestorePlan, TaskPlan } from "./plan.ts";

/** Does what is left of the files of a tree. */
export function finishLateParts(plan: RestorePlan, growth: Growth, files: OpenedFiles): void {
  if (!plan.hasLateParts) return;
  const rings = plan.files.filter(hasOwnerPart).map((entry) => lateRing(plan, entry));
  const making = new Programs();
  for (const ring of rings) ring.make(making.of(ring.tid));
  making.run(plan, growth);
  finishRings(growth, rings);
  const settling = new Programs();
  for (const ring of rings) ring.register((tid) => settling.of(tid));
  for (const entry of plan.files) {
    const pid = notifiedProcess(entry);
    if (pid !== undefined) restoreNotification(settling.of(pid), entry);
  }
  const settled = new Set<number>();
  for (const task of [...plan.tasks.values()].filter(ownsTable))
    settleFiles(settling.of(task.pid), plan, task, { files, settled, when: "late" });
  settling.run(plan, growth);
}

/** Begins requests anew that waited in the rings of a tree, when everything else is done. */
export function beginWaiting(plan: RestorePlan, growth: Growth): void {
  if (!plan.hasLateParts) return;
  const taskOf = new Map(
    [...plan.tasks.values()].flatMap((task) => task.threads.map(({ tid }) => [tid, task] as const)),
  );
  beginRequests(
    plan.files,
    (tid, id) => {
      const task = taskOf.get(tid);
      return task === undefined ? undefined : ownerOf(plan, task, id);
    },
    (tid, program) => runRoomy(plan, growth, [{ tid, program }]),
  );
}

/** A program for each of some threads. */
class Programs {
  readonly #programs = new Map<number, Program>();

  of(tid: number): Program {
    const known = this.#programs.get(tid) ?? new Program();
    this.#programs.set(tid, known);
    return known;
  }

  /** Runs those that have something to do, all at the same time. */
  run(plan: RestorePlan, growth: Growth): void {
    const all = [...this.#programs].filter(([, program]) => program.calls > 0);
    runRoomy(
      plan,
      growth,
      all.map(([tid, program]) => ({ tid, program })),
    );
  }
}

function lateRing(plan: RestorePlan, entry: FileEntry): LateRing {
  const task = plan.tasks.get(entry.reprise_io_uring?.owner ?? -1);
  if (task === undefined)
    throw new RepriseError("BAD_IMAGE", `cannot restore: file ${entry.id} has no owner`);
  return new LateRing(entry, ownerOf(plan, task, entry.id));
}

function finishRings(growth: Growth, rings: readonly LateRing[]): void {
  const pidfds = new Map<number, number>();
  try {
    for (const ring of rings) {
      ring.finish((pid, fd) => {
        const pidfd = pidfds.get(pid) ?? syscall("pidfd_open", growth.outerPid(pid), 0);
        pidfds.set(pid, pidfd);
        return syscall("pidfd_getfd", pidfd, fd, 0);
      });
    }
  } finally {
    for (const pidfd of pidfds.values()) closeSync(pidfd);
  }
}

function ownerOf(plan: RestorePlan, { fdinfo, mm, sharing }: TaskPlan, fileId: number): RingOwner {
  const { vmas } = plan.tasks.get(sharing.memoryOf[0] ?? -1)?.mm ?? mm;
  return {
    fds: fdinfo.filter(({ id }) => id === fileId),
    areas: vmas.filter(({ shmid, status }) => shmid === fileId && (status & VMA_FILE_SHARED) !== 0),
  };
}
