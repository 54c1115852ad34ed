// Timers of a process: the three interval timers of setitimer(2), and POSIX timers (timer_create(2)), whose ids are the
// kernel's and may have gaps. /proc/PID/timers says what a POSIX timer is; how much time is left the process itself asks.
// Time stands still between dump and restore: what is left is armed again, relative to now.
//
// A timer whose signal is pending is not ticking: the kernel goes on with it when the signal is taken, and counts what it
// missed. Its signal is therefore not queued by us (see `firedTimers`): the timer is made due at once and queues it itself.
// Linux 6.15 has PR_TIMER_CREATE_RESTORE_IDS; before, ids count up from 0 in a new process.

import { RepriseError } from "../../errors.ts";
import type {
  ItimerEntry,
  PosixTimerEntry,
  SignalQueueEntry,
  TaskTimersEntry,
} from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import { readTimers, type PosixTimer } from "../../proc/timers.ts";
import {
  ITIMER_PROF,
  ITIMER_REAL,
  ITIMER_VIRTUAL,
  ITIMERVAL_SIZE,
  PR_TIMER_CREATE_RESTORE_IDS,
  PR_TIMER_CREATE_RESTORE_IDS_GET,
  PR_TIMER_CREATE_RESTORE_IDS_OFF,
  PR_TIMER_CREATE_RESTORE_IDS_ON,
  SIGEV_NONE,
  SIGEV_SIGNAL,
  SIGEV_THREAD,
  SIGEV_THREAD_ID,
  SIGEVENT_SIZE,
  THREAD_CPUTIME_CLOCK,
} from "../../sys/abi/sched.ts";
import { SI_TIMER } from "../../sys/abi/signal.ts";
import { trySyscall } from "../../sys/ffi.ts";
import type { Pointer, Program } from "../../tracee/program.ts";
import type { Probe } from "../probe.ts";

/** Highest id that is looked for by creating and deleting timers, on kernels that cannot be told the id. */
const SEARCHED_IDS = 4096;

export interface ProbeTimersOptions {
  /** Turns a thread id of the engine's pid namespace into the number in the images; undefined for one that has ended. */
  readonly innerTid: (tid: number) => number | undefined;
  /** How many threads there are: of several nobody tells whose processor time a timer counts. */
  readonly threads: number;
}

/**
 * Asks for all timers of a process. `pid` is the engine's number for it.
 *
 * @throws RepriseError NO_SUCH_PROCESS, KERNEL_FEATURE (without CONFIG_CHECKPOINT_RESTORE), SYSCALL
 */
export function probeTimers(
  program: Program,
  pid: number,
  options: ProbeTimersOptions,
): Probe<TaskTimersEntry> {
  const real = probeItimer(program, ITIMER_REAL);
  const virt = probeItimer(program, ITIMER_VIRTUAL);
  const prof = probeItimer(program, ITIMER_PROF);
  const timers = readTimers(pid).sort((a, b) => a.id - b.id);
  const posix = timers.map((timer) => probePosixTimer(program, timer, options));
  if (options.threads > 1 && timers.some(({ clockId }) => clockId === THREAD_CPUTIME_CLOCK)) {
    log.loss(`pid ${pid} has a timer on a thread's processor time: it is taken for the leader's`);
  }
  return (result) => ({
    real: real(result),
    virt: virt(result),
    prof: prof(result),
    posix: posix.map((read) => read(result)),
  });
}

/** Ids of the POSIX timers whose signal is in one of the queues. */
export function firedTimers(
  timers: TaskTimersEntry,
  queues: readonly SignalQueueEntry[],
): ReadonlySet<number> {
  const ids = new Set(timers.posix.map(({ it_id }) => it_id));
  const fired = queues.flatMap(({ signals }) =>
    signals.map(({ siginfo }) => timerOf(siginfo)).filter((id) => id !== undefined && ids.has(id)),
  );
  return new Set(fired as number[]);
}

/** The timer whose expiry a raw siginfo tells of; undefined for all other signals. */
export function timerOf(siginfo: Uint8Array): number | undefined {
  const view = new DataView(siginfo.buffer, siginfo.byteOffset, siginfo.byteLength);
  return view.byteLength >= 24 && view.getInt32(8, true) === SI_TIMER
    ? view.getInt32(16, true)
    : undefined;
}

export interface CreateTimersOptions {
  /** Whether timer_create can be told the id: see `canCreateTimerIds`, which is asked by default. */
  readonly exactIds?: boolean;
}

/** Whether this kernel can be told a timer's id (PR_TIMER_CREATE_RESTORE_IDS). */
function canCreateTimerIds(): boolean {
  const get = PR_TIMER_CREATE_RESTORE_IDS_GET;
  return trySyscall("prctl", PR_TIMER_CREATE_RESTORE_IDS, get, 0, 0, 0) >= 0;
}

/**
 * Creates the POSIX timers, not armed. All threads that are to be notified must be there already.
 *
 * @returns a probe that throws KERNEL_FEATURE when a timer got another id (only without `exactIds`).
 * @throws RepriseError KERNEL_FEATURE when an id is too high to be searched for.
 */
export function createTimers(
  program: Program,
  timers: TaskTimersEntry,
  options: CreateTimersOptions = {},
): Probe<void> {
  const posix = [...timers.posix].sort((a, b) => a.it_id - b.it_id);
  if (posix.length === 0) return () => undefined;
  return (options.exactIds ?? canCreateTimerIds())
    ? createWithIds(program, posix)
    : createBySearch(program, posix);
}

/**
 * Arms all timers: the last thing before the tree runs. Those in `fired` are due at once.
 *
 * One-shot timers are armed too. A REAL timer with an interval and nothing left has its SIGALRM pending, so it is made due
 * at once (a second SIGALRM is not queued); for all others, nothing left means that they are off.
 */
export function armTimers(
  program: Program,
  timers: TaskTimersEntry,
  fired: ReadonlySet<number> = new Set(),
): void {
  armItimer(program, ITIMER_REAL, dueAtOnce(timers.real));
  armItimer(program, ITIMER_VIRTUAL, timers.virt);
  armItimer(program, ITIMER_PROF, timers.prof);
  for (const timer of timers.posix) {
    const { isec, insec, vsec, vnsec } = timer;
    const left = fired.has(timer.it_id) ? { vsec: 0n, vnsec: 1n } : { vsec, vnsec };
    if ((isec | insec | left.vsec | left.vnsec) === 0n) continue;
    const value = program.data(words([isec, insec, left.vsec, left.vnsec]));
    program.call("timer_settime", [timer.it_id, 0, value, 0], {
      label: `arm timer ${timer.it_id}`,
    });
  }
}

/** Creates and arms all timers in one go: see `createTimers` and `armTimers`. */
export function restoreTimers(
  program: Program,
  timers: TaskTimersEntry,
  options: CreateTimersOptions & { readonly fired?: ReadonlySet<number> } = {},
): Probe<void> {
  const check = createTimers(program, timers, options);
  armTimers(program, timers, options.fired);
  return check;
}

function probeItimer(program: Program, which: number): Probe<ItimerEntry> {
  const place = program.output(ITIMERVAL_SIZE);
  program.call("getitimer", [which, place], { label: `read interval timer ${which}` });
  return (result) => {
    const bytes = result.bytes(place, ITIMERVAL_SIZE);
    return {
      isec: bytes.readBigUInt64LE(0),
      iusec: bytes.readBigUInt64LE(8),
      vsec: bytes.readBigUInt64LE(16),
      vusec: bytes.readBigUInt64LE(24),
    };
  };
}

function probePosixTimer(
  program: Program,
  timer: PosixTimer,
  { innerTid }: ProbeTimersOptions,
): Probe<PosixTimerEntry> {
  const place = program.output(ITIMERVAL_SIZE);
  const { id } = timer;
  program.call("timer_gettime", [id, place], { label: `read what is left of timer ${id}` });
  const overrun = program.call("timer_getoverrun", [id], {
    label: `read the overrun of timer ${id}`,
  });
  // When its thread has ended, the timer ticks on and tells nobody.
  const told = timer.toThread ? innerTid(timer.target) : undefined;
  const notify = timer.toThread
    ? told === undefined
      ? SIGEV_NONE
      : SIGEV_THREAD_ID
    : NOTIFY[timer.notify];
  return (result) => {
    const bytes = result.bytes(place, ITIMERVAL_SIZE);
    return {
      it_id: id,
      clock_id: timer.clockId >>> 0,
      si_signo: timer.signo,
      it_sigev_notify: notify,
      sival_ptr: timer.sigval,
      overrun: result.value(overrun),
      isec: bytes.readBigUInt64LE(0),
      insec: bytes.readBigUInt64LE(8),
      vsec: bytes.readBigUInt64LE(16),
      vnsec: bytes.readBigUInt64LE(24),
      ...(told === undefined ? {} : { notify_thread_id: told }),
    };
  };
}

const NOTIFY = { none: SIGEV_NONE, signal: SIGEV_SIGNAL, thread: SIGEV_THREAD } as const;

function createWithIds(program: Program, posix: readonly PosixTimerEntry[]): Probe<void> {
  const restoreIds = (state: number): void => {
    program.call("prctl", [PR_TIMER_CREATE_RESTORE_IDS, state, 0, 0, 0], {
      label: "choose the ids of timers",
    });
  };
  restoreIds(PR_TIMER_CREATE_RESTORE_IDS_ON);
  for (const timer of posix) {
    const id = Buffer.alloc(4);
    id.writeInt32LE(timer.it_id);
    createTimer(program, timer, program.data(id));
  }
  restoreIds(PR_TIMER_CREATE_RESTORE_IDS_OFF);
  return () => undefined;
}

/** The kernel counts ids up, so a timer is created and deleted for each id in between. */
function createBySearch(program: Program, posix: readonly PosixTimerEntry[]): Probe<void> {
  const last = posix.at(-1)?.it_id ?? 0;
  if (last > SEARCHED_IDS) throw cannotChoose(last);
  const wanted = new Map(posix.map((timer) => [timer.it_id, timer]));
  const places = new Map<number, Pointer>();
  for (let next = 0; next <= last; next += 1) {
    const place = program.output(4, 4);
    places.set(next, place);
    const timer = wanted.get(next);
    if (timer !== undefined) {
      createTimer(program, timer, place);
      continue;
    }
    const none = { ...(posix[0] as PosixTimerEntry), clock_id: 0, it_sigev_notify: SIGEV_NONE };
    createTimer(program, none, place);
    const id = { kind: "load", from: place, width: 4 } as const;
    program.call("timer_delete", [id], { label: "delete a timer that held an id" });
  }
  return (result) => {
    for (const id of wanted.keys()) {
      const place = places.get(id);
      if (place !== undefined && result.bytes(place, 4).readInt32LE(0) !== id)
        throw cannotChoose(id);
    }
  };
}

/** `id` is where the kernel reads the id that it is to give, or writes the one that it gave. */
function createTimer(program: Program, timer: PosixTimerEntry, id: Pointer): void {
  const event = Buffer.alloc(SIGEVENT_SIZE);
  event.writeBigUInt64LE(timer.sival_ptr, 0);
  event.writeInt32LE(timer.si_signo, 8);
  event.writeInt32LE(timer.it_sigev_notify, 12);
  event.writeInt32LE(timer.notify_thread_id ?? 0, 16);
  program.call("timer_create", [timer.clock_id | 0, program.data(event), id], {
    label: `create timer ${timer.it_id}`,
  });
}

function cannotChoose(id: number): RepriseError {
  return new RepriseError("KERNEL_FEATURE", `cannot create a timer with the id ${id}`, {
    syscall: "timer_create",
    hint: "This kernel cannot be told the ids of timers. Linux 6.15 and later can.",
  });
}

function dueAtOnce(timer: ItimerEntry): ItimerEntry {
  const ticks = (timer.isec | timer.iusec) !== 0n;
  return ticks && (timer.vsec | timer.vusec) === 0n ? { ...timer, vusec: 1n } : timer;
}

/** A timer that is off with no interval is what a new process has. */
function armItimer(program: Program, which: number, timer: ItimerEntry): void {
  const { isec, iusec, vsec, vusec } = timer;
  if ((isec | iusec | vsec | vusec) === 0n) return;
  const value = program.data(words([isec, iusec, vsec, vusec]));
  program.call("setitimer", [which, value, 0], { label: `arm interval timer ${which}` });
}

function words(values: readonly bigint[]): Uint8Array {
  const bytes = Buffer.alloc(values.length * 8);
  values.forEach((value, index) => bytes.writeBigUInt64LE(BigInt.asUintN(64, value), index * 8));
  return bytes;
}
