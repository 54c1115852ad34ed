// Looking at a frozen tree from inside: one program a thread, all threads of all tasks at the same time, for what only the
// thread itself can tell.

import {
  probeProcess,
  ThreadInquiry,
  type ProcessState,
  type ThreadQuestions,
  type ThreadState,
} from "../objects/task/inquiry.ts";
import type { AlikeThreads, AlikeWatch } from "../objects/task/alike.ts";
import { hasLongQueue } from "../objects/task/long-queues.ts";
import { UndoWatch } from "../objects/ipc/undo.ts";
import { readLdt } from "../objects/task/ldt.ts";
import { WaitWatch } from "../objects/task/rest-of-wait.ts";
import type { LandlockWatch } from "../objects/task/landlock.ts";
import type { FrozenTask, FrozenThread } from "../objects/task/task.ts";
import { RepriseError } from "../errors.ts";
import { log } from "../log.ts";
import type { SmapsVma } from "../proc/smaps.ts";
import { SIGCONT } from "../sys/abi/signal.ts";
import {
  cure,
  findSpareBytes,
  inject,
  workAreaSize,
  type Injection,
  type StoppedThread,
} from "../tracee/injection.ts";
import { Program, type ProgramResult } from "../tracee/program.ts";
import { runPrograms, type Job, type RunningProgram } from "../tracee/run.ts";
import { PAGE_SIZE, TASK_SIZE } from "../sys/abi/mman.ts";
import type { CollectedTask, CollectedTree } from "./collect.ts";
import type { FrozenTree } from "./freeze.ts";

/** What the threads told. */
export interface InsideView {
  readonly injections: readonly Injection[];
  process(task: FrozenTask): ProcessState;
  thread(tid: number): ThreadState;
}

interface Inquiry {
  readonly task: CollectedTask;
  readonly process: (result: ProgramResult) => ProcessState;
  /** Who is asked, the leader first, and what. */
  readonly asked: readonly Asked[];
  /** What is known of the other threads. */
  readonly alike: AlikeThreads | undefined;
}

interface Asked {
  readonly thread: FrozenThread;
  readonly questions: ThreadQuestions;
}

/** Few have a local descriptor table: it is read by two programs more. */
function withLdt(state: ProcessState, pid: number, job: Job): ProcessState {
  if (!state.hasLdt) return state;
  const run = (program: Program): ProgramResult =>
    runPrograms([{ ...job, program }])[0] as ProgramResult;
  return { ...state, ldt: readLdt(pid, run) };
}

/** What is looked at with. */
export interface Watches {
  readonly landlock: LandlockWatch;
  readonly alike: AlikeWatch;
}

/** Asks all threads, or those that stand for others. The injections stay in place; the caller cures them. */
export function lookInside(
  tree: FrozenTree,
  collected: CollectedTree,
  watches: Watches,
): InsideView {
  noteBlockedContinues(tree);
  const intrusions = bySharedMemory(collected.live.map((task) => inquire(task, tree, watches)));
  const injections = inject(
    intrusions.map((inquiries) => target(inquiries[0].task, inquiries.flatMap(intruders))),
  );
  const processes = new Map<number, ProcessState>();
  const threads = new Map<number, ThreadState>();
  let doubtful: CollectedTask | undefined;
  try {
    const jobs = intrusions.flatMap((inquiries, index) =>
      jobsOf(inquiries.flatMap(intruders), injections[index] as Injection),
    );
    const results = runPrograms(jobs);
    let next = 0;
    for (const inquiry of intrusions.flat()) {
      const { task, asked } = inquiry;
      asked.forEach(({ thread, questions }, index) => {
        const { tid } = thread;
        const job = jobs[next] as Job;
        const result = results[next++] as ProgramResult;
        if (index === 0) processes.set(task.task.pid, withLdt(inquiry.process(result), tid, job));
        threads.set(tid, questions.state(result, thread));
      });
      if (!fillIn(inquiry, threads)) doubtful = task;
    }
    using waits = new WaitWatch();
    for (const thread of collected.live.flatMap(({ task }) => task.threads)) {
      const state = threads.get(thread.tid);
      const restOfWait = waits.rest(thread);
      if (state !== undefined && restOfWait !== undefined)
        threads.set(thread.tid, { ...state, restOfWait });
    }
    using undo = new UndoWatch();
    for (const { task, ids } of collected.live) {
      const { ipc_ns_id: id = 0 } = ids;
      const isOwn = id === collected.namespaces.own.ipc_ns_id;
      const semUndo = undo.read(task, { id, isOwn });
      const state = processes.get(task.pid);
      if (state !== undefined && semUndo.length > 0) processes.set(task.pid, { ...state, semUndo });
    }
  } catch (error) {
    // A loss that is refused, for one.
    cure(injections);
    throw error;
  }
  if (doubtful !== undefined) {
    cure(injections);
    log.debug(`each thread of pid ${doubtful.task.pid} is asked: memory and answers differ`);
    watches.alike.forget(doubtful.task);
    return lookInside(tree, collected, watches);
  }
  return {
    injections,
    process: (task) => processes.get(task.pid) as ProcessState,
    thread: (tid) => threads.get(tid) as ThreadState,
  };
}

/** What threads have that were not asked; false when those that were have said something else than is known of them. */
function fillIn(
  { task: { task }, asked, alike }: Inquiry,
  threads: Map<number, ThreadState>,
): boolean {
  if (alike === undefined) return true;
  for (const { thread } of asked) {
    const { sas, clearTidAddress } = threads.get(thread.tid) as ThreadState;
    const stack = alike.alternateStack(thread);
    const isSame =
      clearTidAddress === alike.clearTidAddress(thread.tid) &&
      sas.ss_sp === stack.ss_sp &&
      sas.ss_size === stack.ss_size &&
      sas.ss_flags === stack.ss_flags;
    if (!isSame) return false;
  }
  for (const thread of task.threads) {
    const { tid } = thread;
    if (threads.has(tid)) continue;
    const speaker = threads.get(alike.speakerOf(tid)) as ThreadState;
    // Written out: all have one form.
    threads.set(tid, {
      creds: speaker.creds,
      attributes: speaker.attributes,
      settings: speaker.settings,
      memoryPolicy: speaker.memoryPolicy,
      personality: speaker.personality,
      sas: alike.alternateStack(thread),
      clearTidAddress: alike.clearTidAddress(tid),
      taken: undefined,
    });
  }
  return true;
}

/** What a task is to do, and what is done while it does. */
export interface Errand {
  readonly program: Program;
  readonly meanwhile?: (running: RunningProgram) => void;
}

/** Runs a program in the first thread of each task; the tasks are left as they were. */
export function runInLeaders(
  tree: FrozenTree,
  tasks: readonly Pick<CollectedTask, "task" | "vmas">[],
  errands: readonly Errand[],
): ProgramResult[] {
  noteBlockedContinues(tree);
  const injections = inject(
    tasks.map((task, index) =>
      target(
        task,
        task.task.threads.map(({ stopped }, thread) => ({
          stopped,
          program: thread === 0 ? (errands[index] as Errand).program : new Program(),
        })),
      ),
    ),
  );
  try {
    return runPrograms(
      injections.map((injection, index) => ({
        tracee: (injection.target.threads[0] as StoppedThread).tracee,
        ...(errands[index] as Errand),
        code: injection.code,
        base: injection.programs,
        frame: injection.frames[0] ?? 0,
        entry: injection.relays[0]?.enter,
      })),
    );
  } finally {
    cure(injections);
  }
}

/** Our SIGSTOP removes a pending SIGCONT; it is sent again at the end. */
function noteBlockedContinues(tree: FrozenTree): void {
  const bit = 1n << BigInt(SIGCONT - 1);
  for (const task of tree.tasks) {
    const leader = task.threads[0];
    if (leader !== undefined && ((task.status.shdPnd | task.status.sigPnd) & bit) !== 0n)
      leader.stopped.tracee.continuePending = true;
  }
}

function inquire(
  task: CollectedTask,
  tree: FrozenTree,
  { landlock, alike: watch }: Watches,
): Inquiry {
  const leaders = new Program();
  const process = probeProcess(leaders, task.task, {
    innerTid: (tid) => innerTid(tree, tid),
    areas: task.sharesMemory ? [] : task.vmas.map(({ entry }) => entry),
  });
  const alike = watch.threads(task.task);
  const inquiry = new ThreadInquiry(task.task, landlock);
  const asked = task.task.threads
    .filter(
      (thread, index) =>
        index === 0 ||
        alike === undefined ||
        alike.speakerOf(thread.tid) === thread.tid ||
        hasLongQueue(task.task, thread),
    )
    .map((thread, index) => ({
      thread,
      questions: inquiry.of(thread, index === 0 ? leaders : undefined),
    }));
  return { task, process, asked, alike };
}

function innerTid(tree: FrozenTree, tid: number): number | undefined {
  for (const { threads, endedLeader, innerPid } of tree.tasks) {
    if (endedLeader?.pid === tid) return innerPid;
    for (const thread of threads) if (thread.tid === tid) return thread.innerTid;
  }
  return undefined;
}

/** Tasks in one address space (CLONE_VM) are as threads of one process here: they have one work area. */
function bySharedMemory(inquiries: readonly Inquiry[]): [Inquiry, ...Inquiry[]][] {
  const found = new Map<number, [Inquiry, ...Inquiry[]]>();
  for (const inquiry of inquiries) {
    const { vm_id: id } = inquiry.task.ids;
    const others = found.get(id);
    if (others === undefined) found.set(id, [inquiry]);
    else others.push(inquiry);
  }
  return [...found.values()];
}

/** A stopped thread and its program. */
interface Intruder {
  readonly stopped: StoppedThread;
  readonly program: Program;
}

function intruders({ asked }: Inquiry): Intruder[] {
  return asked.map(({ thread: { stopped }, questions: { program } }) => ({ stopped, program }));
}

function target(
  task: Pick<CollectedTask, "task" | "vmas">,
  all: readonly Intruder[],
): Parameters<typeof inject>[0][number] {
  const threads = all.map(({ stopped }) => stopped);
  const programSize = all.reduce((sum, { program }) => sum + roomFor(program), 0);
  const areas = task.vmas.map(({ area }) => area);
  return {
    threads,
    spare: spareBytes(task.task, areas, threads[0] ?? {}),
    hole: findHole(task, workAreaSize(threads, programSize)),
    programSize,
  };
}

function jobsOf(all: readonly Intruder[], injection: Injection): Job[] {
  let base = injection.programs;
  return all.map(({ stopped, program }, index) => {
    const job = {
      tracee: stopped.tracee,
      program,
      code: injection.code,
      base,
      frame: injection.frames[index] ?? 0,
      entry: injection.relays[index]?.enter,
      regs: stopped.regs,
    };
    base += roomFor(program);
    return job;
  });
}

function roomFor(program: Program): number {
  return Math.ceil(program.size / 64) * 64;
}

function spareBytes(
  task: FrozenTask,
  areas: readonly SmapsVma[],
  leader: Pick<StoppedThread, "selector">,
): number {
  const executable = areas.filter(({ exec, read, end }) => exec && read && end <= TASK_SIZE);
  const ordered = executable.sort(
    (a, b) => Number(b.path === "[vdso]") - Number(a.path === "[vdso]"),
  );
  const spare = findSpareBytes(task.pid, ordered, leader);
  if (spare === undefined) {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump pid ${task.pid}: there is no spare room in its executable memory`,
      {
        pid: task.pid,
        hint: "Programs without a vdso and with full code pages cannot be saved.",
      },
    );
  }
  return spare;
}

const LOWEST_HOLE = 0x1000_0000;
/** Distance to other areas, so that nothing of the task's grows into ours. */
const MARGIN = 64 * PAGE_SIZE;

function findHole(task: Pick<CollectedTask, "vmas">, size: number): number {
  let from = LOWEST_HOLE;
  for (const { entry } of task.vmas) {
    if (entry.start > TASK_SIZE) break;
    if (entry.start - from >= size + 2 * MARGIN) break;
    from = Math.max(from, entry.end);
  }
  return from + MARGIN;
}
