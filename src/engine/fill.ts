// Filling the tasks: memory, descriptors, threads, and everything that belongs to a process or thread. One program a task,
// then one a thread, all tasks at the same time; each task reads its own pages from the images.

import type {
  FileEntry,
  FsEntry,
  RlimitEntry,
  SeccompFilter,
} from "../images/schema/messages.generated.ts";
import { sealVma } from "../objects/memory/vma.ts";
import { restoreMm } from "../objects/memory/mm.ts";
import { makeUserfault } from "../objects/memory/lazy.ts";
import {
  controllingTerminals,
  setForeground,
  type ControllingTerminal,
} from "../objects/files/controlling-terminal.ts";
import { restoreLocks } from "../objects/files/locks.ts";
import { sealAfterMapping } from "../objects/files/memfd.ts";
import { isForThreads } from "../objects/files/for-threads.ts";
import { kindOfType } from "../objects/files/registry.ts";
import { restoreUndo } from "../objects/ipc/undo.ts";
import { log } from "../log.ts";
import type { Probe } from "../objects/probe.ts";
import {
  restoreProcess,
  restoreProcessEarly,
  restoreThread,
} from "../objects/task/core-restore.ts";
import { openLabels, writeLabels, type OpenedLabel } from "../objects/task/lsm.ts";
import { collectLimits } from "../objects/task/limits.ts";
import { takeOver } from "../objects/mounts/autofs.ts";
import { CLOSE_RANGE_MAX, FD_CLOEXEC, O_CLOEXEC } from "../sys/abi/fcntl.ts";
import { LOGINUID_UNSET } from "../proc/loginuid.ts";
import * as sched from "../sys/abi/sched.ts";
import { Program, type ProgramResult, type Ref } from "../tracee/program.ts";
import { runPrograms, type Job } from "../tracee/run.ts";
import { Tracee, taskDied } from "../tracee/tracee.ts";
import { readStatus, type TaskStatus } from "../proc/status.ts";
import { addClone } from "../tracee/clone.ts";
import { makeThread, outerThreads, restoreChildrenNamespace } from "./grow-nested.ts";
import { firstPoolFd, job, roomOfEach, taskJob, type Growth } from "./growth.ts";
import type { BulkFill } from "./bulk-fill.ts";
import type { UserFaults } from "./hand-over.ts";
import { isEarly } from "./inherit-memory.ts";
import { addEarlyMemory, addLateMemory } from "./memory-steps.ts";
import { enterNested } from "./namespaces.ts";
import type { OpenedFiles } from "./open-files.ts";
import { attachedSegments, type SegmentsOf } from "./segments.ts";
import { hasUsers, type RestorePlan, type TaskPlan } from "./plan.ts";
import { isFirst } from "./sharing.ts";
import { frontPid } from "../sys/front.ts";

/** Gives every task its memory, files and threads. For memory that comes later they make userfaultfds. */
export function fillTasks(
  plan: RestorePlan,
  growth: Growth,
  { files, bulk }: { readonly files: OpenedFiles; readonly bulk: BulkFill | undefined },
): UserFaults {
  const settled = new Set<number>();
  const segments = attachedSegments(plan, growth);
  const faults = new Map<number, Ref>();
  const terminals = controllingTerminals(plan.set, {
    orphans: plan.options.orphanMaster !== undefined,
  });
  const imagesDir = plan.set.reader.dir;
  const around = { files, settled, terminals, growth, faults, segments, imagesDir, bulk };
  const tasks = [...plan.tasks.values()];
  const results = runNoted(
    tasks.map((task) => {
      const program = new Program();
      const notes = addTask(program, plan, task, around);
      return { job: taskJob(plan, growth, { pid: task.pid, program }), notes };
    }),
  );
  for (const task of plan.tasks.values()) adoptThreads(plan, growth, task);
  return new Map(
    tasks.flatMap(({ pid }, index) => {
      const fault = faults.get(pid);
      return fault === undefined ? [] : [[pid, (results[index] as ProgramResult).value(fault)]];
    }),
  );
}

/** The credentials that the engine's tasks have, and keep where the engine may not change them. */
function fixedCredentials({ namespaces }: RestorePlan): TaskStatus | undefined {
  // The tasks of a user namespace of their own may do everything there.
  if (namespaces.ofRoot("user") !== undefined) return undefined;
  const own = readStatus(process.pid);
  const needed = [sched.CAP_SETUID, sched.CAP_SETGID, sched.CAP_SETPCAP].reduce(
    (bits, cap) => bits | (1n << BigInt(cap)),
    0n,
  );
  return (own.capEff & needed) === needed ? undefined : own;
}

/** From so many threads on it pays to look at what they have already. */
const MANY_THREADS = 8;

/** What every thread has for itself. The leader's comes with what the whole process has, and last. */
export function fillThreads(plan: RestorePlan, growth: Growth, files: OpenedFiles): void {
  const followers = [...plan.tasks.values()].flatMap((task) =>
    task.threads.slice(1).map((thread) => ({ task, thread })),
  );
  const room = roomOfEach(plan, followers.length);
  const fixedCreds = fixedCredentials(plan);
  const fresh = new Map<TaskPlan, TaskStatus>();
  const credentialsOf = (task: TaskPlan, { tid }: Tracee): TaskStatus | undefined => {
    if (hasUsers(plan) || task.threads.length < MANY_THREADS) return undefined;
    // All of them were made by the same thread.
    const known = fresh.get(task) ?? readStatus(tid);
    fresh.set(task, known);
    return known;
  };
  runNoted(
    followers.map(({ task, thread }, index) => {
      const tracee = growth.tracees.get(thread.tid) as Tracee;
      const program = new Program();
      const own = thread.core.thread_core?.reprise?.fs;
      if (own !== undefined) addOwnDirectories(program, plan, task, { own, files });
      const notes = restoreThread(program, thread.core, {
        pid: plan.pids.ownNumber(task.pid),
        tid: plan.pids.threadNumbers(task.pid, thread.tid).at(-1) ?? thread.tid,
        filters: seccompFilters(plan),
        fixedCreds,
        knownCreds: credentialsOf(task, tracee),
        labels: labelsOf(program, plan, { tid: thread.tid, proc: growth.proc }),
      });
      // Threads share their memory: each has its own part of the work area.
      return {
        job: { ...job(plan, tracee, program), base: plan.area.programs + index * room },
        notes,
      };
    }),
  );
  const limits = seedLimits(growth.outerPid(plan.tree.root.pid));
  const settled = new Set<number>();
  runNoted(
    [...plan.tasks.values()].map((task) => {
      const program = new Program();
      // What several tasks have in common is changed when none needs /proc by its name any more.
      if (sharesDirectories(task)) addDirectories(program, plan, task.fs, files);
      if (ownsMemory(task)) for (const vma of task.mm.vmas) sealVma(program, vma);
      // All tasks have mapped their memory: nothing needs these objects unsealed any more.
      if (task.pid === plan.tree.root.pid) {
        for (const entry of plan.files) sealAfterMapping(program, entry, files.fd(entry.id), plan);
        files.addLast(program);
      }
      addAutofs(program, plan, task, { growth, files });
      const places = [firstPoolFd(plan) - 1, firstPoolFd(plan) - 2];
      const labels = labelsOf(program, plan, { tid: task.pid, proc: growth.proc, places });
      if (ownsTable(task)) {
        if (plan.hasThreadHandles)
          settleFiles(program, plan, task, { files, settled, when: "threads" });
        program.call("close_range", [firstPoolFd(plan), CLOSE_RANGE_MAX, 0], {
          label: "close the descriptors of the restore",
        });
        addLocks(program, plan, task);
      }
      const parentLeaves =
        task.pid === plan.tree.root.pid &&
        growth.init === undefined &&
        plan.options.sibling !== true;
      restoreChildrenNamespace(program, plan, task.pid);
      const undone = restoreUndo(program, task.core.tc?.reprise?.sem_undo?.sets ?? [], {
        isSaved: plan.set.reader.has("ipcns-sem", task.ids.ipc_ns_id ?? 0),
      });
      const notes = restoreProcess(program, task.core, {
        mm: task.mm,
        umask: task.fs.umask ?? 0o22,
        limits,
        pid: plan.pids.ownNumber(task.pid),
        filters: seccompFilters(plan),
        fixedCreds,
        labels,
        parentLeaves,
      });
      return {
        job: taskJob(plan, growth, { pid: task.pid, program }),
        notes: (result) => [...undone(result), ...notes(result)],
      };
    }),
  );
}

/** An automounter takes over what it is to mount. */
function addAutofs(
  program: Program,
  plan: RestorePlan,
  task: TaskPlan,
  { growth, files }: { readonly growth: Growth; readonly files: OpenedFiles },
): void {
  for (const owner of growth.mountPlaces?.autofs ?? []) {
    if (owner.saved.pgrp !== task.pid) continue;
    takeOver(program, owner, {
      fds: new Set(task.fdinfo.map(({ fd }) => fd)),
      spare: firstPoolFd(plan) - 1,
      writer: (fd) => {
        const id = task.fdinfo.find((entry) => entry.fd === fd)?.id;
        return files.pipeWriter(plan.set.files.get(id ?? -1)?.pipe?.pipe_id ?? -1);
      },
    });
  }
}

/** The locks of all tasks that share this task's table of descriptors. */
function addLocks(program: Program, plan: RestorePlan, task: TaskPlan): void {
  const locks = plan.set.fileLocks.filter(({ pid }) => task.sharing.tableOf.includes(pid));
  if (locks.length === 0) return;
  const ids = new Map(task.fdinfo.map(({ fd, id }) => [fd, id]));
  restoreLocks(program, locks, {
    isAllowed: plan.options.fileLocks,
    file: (fd) => plan.set.files.get(ids.get(fd) ?? -1),
  });
}

function seccompFilters({ set }: RestorePlan): readonly SeccompFilter[] {
  return set.seccomp?.seccomp_filters ?? [];
}

interface NotedJob {
  readonly job: Job;
  /** Reads from the results what could not be given back in full. */
  readonly notes: Probe<string[]>;
}

/** Runs programs, and logs what they could not give back in full. */
function runNoted(jobs: readonly NotedJob[]): readonly ProgramResult[] {
  const results = runPrograms(jobs.map((noted) => noted.job));
  jobs.forEach(({ notes, job: { tracee } }, index) => {
    for (const note of notes(results[index] as ProgramResult))
      log.warn(`pid ${tracee.leader}: ${note}`);
  });
  return results;
}

/** The limits that tasks have from the seed: the engine's, but for that on open files (see grow-root.ts). */
function seedLimits(root: number): RlimitEntry[] {
  const raised = collectLimits(root)[sched.RLIMIT_NOFILE] as RlimitEntry;
  return collectLimits(frontPid()).map((limit, resource) =>
    resource === sched.RLIMIT_NOFILE ? raised : limit,
  );
}

interface TaskSurroundings {
  readonly files: OpenedFiles;
  /** Ids of files that some task has settled. */
  readonly settled: Set<number>;
  /** By the session whose leader has taken them. */
  readonly terminals: ReadonlyMap<number, ControllingTerminal>;
  readonly segments: SegmentsOf;
  readonly growth: Growth;
  readonly imagesDir: string;
  readonly bulk: BulkFill | undefined;
  /** The userfaultfds that tasks make, by pid. */
  readonly faults: Map<number, Ref>;
}

function addTask(
  program: Program,
  plan: RestorePlan,
  task: TaskPlan,
  around: TaskSurroundings,
): Probe<string[]> {
  const node = plan.tree.nodes.find(({ pid }) => pid === task.pid);
  const group = plan.pids.ownGroup(task.pid);
  if (node !== undefined && node.joinsGroup !== 0 && group !== 0) {
    program.call("setpgid", [0, group], {
      label: `put pid ${task.pid} into process group ${node.joinsGroup}`,
    });
  }
  const notes = restoreProcessEarly(
    program,
    task.core,
    // The seed has forgotten the engine's own: see grow-root.ts.
    !hasUsers(plan) ? {} : { inheritedLoginuid: LOGINUID_UNSET },
  );
  // Before segments of shared memory are attached.
  enterNested(program, plan, around.growth, { pid: task.pid, which: "others" });
  const placed = ownsMemory(task) ? addMemory(program, plan, task, around) : NO_NOTES;
  enterNested(program, plan, around.growth, { pid: task.pid, which: "mounts" });
  enterNested(program, plan, around.growth, { pid: task.pid, which: "user" });
  // Files of /proc are opened by their names in the tree's root directory.
  if (ownsTable(task)) addDescriptors(program, plan, task, around);
  if (task.sharing.directoriesOf.length === 1) addDirectories(program, plan, task.fs, around.files);
  // All groups are there, and of those who have the terminal open the leader is sure to be in its session.
  const terminal = around.terminals.get(task.pid);
  if (terminal !== undefined && terminal.pgrp !== 0)
    setForeground(
      program,
      around.files.fd(terminal.fileId),
      plan.pids.seenBy(task.pid, terminal.pgrp),
    );
  addFirstLabel(program, plan, { tid: task.pid, proc: around.growth.proc });
  const chosen = plan.pids.chosenForThreads(task.pid);
  for (const { tid } of chosen === 0 ? [] : task.threads.slice(1)) {
    const pid = plan.pids.threadNumbers(task.pid, tid).slice(-chosen).toReversed();
    addClone(program, { pid, flags: THREAD_FLAGS, what: `thread ${tid} of pid ${task.pid}` });
  }
  return (result) => [...notes(result), ...placed(result)];
}

const NO_NOTES: Probe<string[]> = () => [];

function addMemory(
  program: Program,
  plan: RestorePlan,
  task: TaskPlan,
  around: TaskSurroundings,
): Probe<string[]> {
  const node = plan.tree.nodes.find(({ pid }) => pid === task.pid);
  const memory = { ...around, segments: around.segments(task.pid), images: around.growth.images };
  // Who has made children has done the first part then.
  if (node === undefined || !isEarly(task.memory, node)) addEarlyMemory(program, task, memory);
  const hasBreakpoints = plan.set.inventory.allow_uprobes === true;
  const placed = addLateMemory(program, task, { ...memory, hasBreakpoints });
  if (task.later.length > 0) {
    const device = around.growth.userfaultDevice;
    around.faults.set(task.pid, makeUserfault(program, { firstFd: firstPoolFd(plan), device }));
  }
  restoreMm(program, task.mm, around.files.fd(task.mm.exe_file_id));
  return placed;
}

interface LabelPlace {
  readonly tid: number;
  readonly proc: number | undefined;
  /** Numbers for descriptors, where those of the pool are closed before the labels are set. */
  readonly places?: readonly number[];
}

/** The label of a whole process, where it has to be set while there is one thread. */
function addFirstLabel(program: Program, plan: RestorePlan, { tid, proc }: LabelPlace): void {
  const profile = plan.labels.get(tid)?.lsm_profile;
  if (!plan.labelsFirst || profile === undefined || proc === undefined) return;
  writeLabels(program, openLabels(program, { lsm_profile: profile }, { proc }));
}

function labelsOf(
  program: Program,
  plan: RestorePlan,
  { tid, proc, places }: LabelPlace,
): OpenedLabel[] {
  const { lsm_profile, lsm_sockcreate } = plan.labels.get(tid) ?? {};
  if (proc === undefined) return [];
  const labels = { lsm_sockcreate, ...(plan.labelsFirst ? {} : { lsm_profile }) };
  return openLabels(program, labels, { proc, ...(places === undefined ? {} : { places }) });
}

const THREAD_FLAGS =
  sched.CLONE_VM |
  sched.CLONE_FS |
  sched.CLONE_FILES |
  sched.CLONE_SIGHAND |
  sched.CLONE_THREAD |
  sched.CLONE_SYSVSEM;

function addDirectories(
  program: Program,
  plan: RestorePlan,
  fs: FsEntry,
  files: OpenedFiles,
): void {
  if (plan.set.files.get(fs.root_id)?.reg?.name !== "/") {
    program.call("fchdir", [files.fd(fs.root_id)], { label: "restore the root directory" });
    program.call("chroot", [program.string(".")], { label: "restore the root directory" });
  }
  program.call("fchdir", [files.fd(fs.cwd_id)], { label: "restore the current directory" });
}

/** A thread leaves what its process has in common. Its root is its process's so far. */
function addOwnDirectories(
  program: Program,
  plan: RestorePlan,
  task: TaskPlan,
  { own, files }: { readonly own: FsEntry; readonly files: OpenedFiles },
): void {
  const label = `give a thread of pid ${task.pid} directories of its own`;
  program.call("unshare", [sched.CLONE_FS], { label });
  const nameOf = (id: number): string | undefined => plan.set.files.get(id)?.reg?.name;
  const root = task.sharing.directoriesOf.length === 1 ? nameOf(task.fs.root_id) : "/";
  if (nameOf(own.root_id) !== root) {
    program.call("fchdir", [files.fd(own.root_id)], { label });
    program.call("chroot", [program.string(".")], { label });
  }
  program.call("fchdir", [files.fd(own.cwd_id)], { label });
  program.call("umask", [own.umask ?? 0o22], { label });
}

/** Every descriptor into its place. Those of the restore are closed last, when no other task of a shared table needs them. */
function addDescriptors(
  program: Program,
  plan: RestorePlan,
  task: TaskPlan,
  { files, settled }: TaskSurroundings,
): void {
  const pool = firstPoolFd(plan);
  program.call("close_range", [0, pool - 1, 0], { label: "close what the seed had open" });
  for (const { fd, id, flags } of task.fdinfo) {
    program.call("dup3", [files.fd(id), fd, (flags & FD_CLOEXEC) !== 0 ? O_CLOEXEC : 0], {
      label: `place fd ${fd} of pid ${task.pid}`,
    });
  }
  settleFiles(program, plan, task, { files, settled, when: "tree" });
  if (task.pid !== plan.tree.root.pid) return;
  for (const entry of plan.inFlight) files.settle(program, entry, files.fd(entry.id));
}

interface Settling {
  readonly files: OpenedFiles;
  readonly settled: Set<number>;
  /** What is there by now. */
  readonly when: Stage;
}

/** When a file can be settled: as soon as the tree stands, when the threads are there, or after the last parts of others. */
type Stage = "tree" | "threads" | "late";

/** What files need when all descriptors are in their places. Those made anew in each task first: others may watch them. */
export function settleFiles(
  program: Program,
  plan: RestorePlan,
  task: TaskPlan,
  { files, settled, when }: Settling,
): void {
  const entries = task.fdinfo.flatMap(({ fd, id }) => {
    const entry = plan.set.files.get(id);
    const isNow = entry !== undefined && stageOf(plan, entry) === when;
    return isNow ? [{ fd, entry, isEach: kindOfType(entry.type).settleEach === true }] : [];
  });
  for (const { fd, entry } of entries.filter(({ isEach }) => isEach))
    files.settle(program, entry, fd);
  for (const { fd, entry, isEach } of entries) {
    if (isEach || settled.has(entry.id)) continue;
    settled.add(entry.id);
    files.settle(program, entry, fd);
  }
}

/** Handles of threads come with these, and the epolls after what they may watch. */
function stageOf({ set, hasThreadHandles, hasLateParts }: RestorePlan, entry: FileEntry): Stage {
  if (hasLateParts && entry.epfd !== undefined) return "late";
  const isLater = hasThreadHandles && (entry.epfd !== undefined || isForThreads(entry, set));
  return isLater ? "threads" : "tree";
}

/** The first task of those that share a table of descriptors fills it, and so with memory. */
export function ownsTable({ pid, sharing }: TaskPlan): boolean {
  return isFirst(pid, sharing.tableOf);
}

function ownsMemory({ pid, sharing }: TaskPlan): boolean {
  return isFirst(pid, sharing.memoryOf);
}

/** The first of several tasks with the same directories. */
function sharesDirectories({ pid, sharing: { directoriesOf } }: TaskPlan): boolean {
  return directoriesOf.length > 1 && isFirst(pid, directoriesOf);
}

/** Finds the new threads of a task by their first stops. */
function adoptThreads(plan: RestorePlan, growth: Growth, task: TaskPlan): void {
  const leader = growth.tracees.get(task.pid) as Tracee;
  const followers = task.threads.slice(1);
  if (followers.length > 0 && plan.pids.chosenForThreads(task.pid) === 0) {
    // The highest number first: what others get meanwhile lies behind the last that was given.
    for (const { tid } of followers.toSorted((a, b) => b.tid - a.tid)) {
      const thread = { pid: task.pid, tid, flags: THREAD_FLAGS };
      growth.tracees.set(tid, makeThread(plan, growth, thread));
    }
    return;
  }
  const outer = plan.hasInnerPids || plan.pids.isNested ? outerThreads(leader.tid) : undefined;
  for (const { tid } of followers) {
    const number = plan.pids.threadNumbers(task.pid, tid).at(-1) ?? tid;
    const tracee = new Tracee(outer?.get(number) ?? tid, leader.tid, growth.counters);
    if (tracee.waitInterrupted() === undefined)
      throw taskDied(tracee, "ended as soon as it was made");
    growth.tracees.set(tid, tracee);
  }
}
