// The end of a restore for files of which a part belongs to one process or thread, when all tasks have their descriptors and
// credentials: io_uring rings, what is registered with rings, and notifications of message queues, which end when their owner closes any
// descriptor of the queue. The epolls of such a tree are filled after that, since they may watch a ring.

import { closeSync } from "node:fs";
import type { FileEntry } from "../images/schema/messages.generated.ts";
import { hasNotification, restoreNotification } from "../objects/files/mqueue.ts";
import { beginRequests, finishRing, hasOwnerPart } from "../objects/io-uring/owned-ring.ts";
import { VMA_FILE_SHARED } from "../objects/memory/vma.ts";
import { assert, RepriseError } from "../errors.ts";
import { syscall } from "../sys/ffi.ts";
import { Program } from "../tracee/program.ts";
import { runPrograms } from "../tracee/run.ts";
import { ownsTable, settleFiles } from "./fill.ts";
import { taskJob, type Growth } from "./growth.ts";
import { roomyJob } from "./helpers.ts";
import type { OpenedFiles } from "./open-files.ts";
import type { RestorePlan, TaskPlan } from "./plan.ts";

/** Does what is left of the files of a tree. */
export function finishLateParts(plan: RestorePlan, growth: Growth, files: OpenedFiles): void {
  if (!plan.hasLateParts) return;
  for (const entry of plan.files) {
    if (hasOwnerPart(entry)) finishOne(plan, growth, entry);
    if (hasNotification(entry)) notifyAgain(plan, growth, entry);
  }
  const settled = new Set<number>();
  const jobs = [...plan.tasks.values()].filter(ownsTable).map((task) => {
    const program = new Program();
    settleFiles(program, plan, task, { files, settled, when: "late" });
    return taskJob(plan, growth, { pid: task.pid, program });
  });
  runPrograms(jobs.filter(({ program }) => program.calls > 0));
}

/** Begins requests anew that waited in the rings of a tree, when everything else is done. */
export function beginWaiting(plan: RestorePlan, growth: Growth): void {
  if (!plan.hasLateParts) return;
  const tasks = [...plan.tasks.values()];
  for (const entry of plan.files) {
    beginRequests(entry, (tid) => {
      const task = tasks.find(({ threads }) => threads.some((thread) => thread.tid === tid));
      const tracee = growth.tracees.get(tid);
      const fd = task?.fdinfo.find(({ id }) => id === entry.id)?.fd;
      if (tracee === undefined || fd === undefined) {
        throw new RepriseError(
          "BAD_IMAGE",
          `cannot restore io_uring ring ${entry.id}: thread ${tid} waits for a request and has no descriptor of the ring`,
        );
      }
      return {
        fd,
        run: (program, before) => {
          const { job, done } = roomyJob(plan, tracee, program);
          before(job.base);
          runPrograms([job]);
          done();
        },
      };
    });
  }
}

function finishOne(plan: RestorePlan, growth: Growth, entry: FileEntry): void {
  const ring = entry.reprise_io_uring;
  const task = plan.tasks.get(ring?.owner ?? -1);
  const tracee = growth.tracees.get(ring?.thread ?? ring?.owner ?? -1);
  assert(task !== undefined && tracee !== undefined, `file ${entry.id} has no owner`);
  finishRing(entry, {
    fds: task.fdinfo.filter(({ id }) => id === entry.id),
    areas: areasOf(task, entry.id),
    run: (program) => {
      const { job, done } = roomyJob(plan, tracee, program);
      runPrograms([job]);
      done();
    },
    withCopy: (fd, use) => {
      const pidfd = syscall("pidfd_open", growth.outerPid(task.pid), 0);
      const copy = syscall("pidfd_getfd", pidfd, fd, 0);
      try {
        use(copy);
      } finally {
        closeSync(copy);
        closeSync(pidfd);
      }
    },
  });
}

function notifyAgain(plan: RestorePlan, growth: Growth, entry: FileEntry): void {
  const program = new Program();
  const pid = restoreNotification(program, entry);
  runPrograms([taskJob(plan, growth, { pid, program })]);
}

function areasOf({ mm }: TaskPlan, id: number): TaskPlan["mm"]["vmas"] {
  return mm.vmas.filter(({ shmid, status }) => shmid === id && (status & VMA_FILE_SHARED) !== 0);
}
