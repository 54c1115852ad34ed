// timerfd: a timer that is read, see timerfd_create(2) and fs/timerfd.c. What is saved is relative: the rest until the next
// expiration. A periodic timer whose expirations nobody read stands still in the kernel (rest 0, one tick) until someone
// reads it or asks timerfd_gettime(2), which winds it on: so it is asked before fdinfo is read. CRIU does not ask, and
// such a timer comes back disarmed.

import { assert } from "../../errors.ts";
import {
  FdTypes,
  type FileEntry,
  type TimerfdEntry,
} from "../../images/schema/messages.generated.ts";
import { readFdInfo } from "../../proc/fdinfo.ts";
import {
  CLOCK_REALTIME,
  CLOCK_REALTIME_ALARM,
  ITIMERSPEC_SIZE,
  TFD_IOC_SET_TICKS,
  TFD_TIMER_ABSTIME,
  TFD_TIMER_CANCEL_ON_SET,
} from "../../sys/abi/event-files.ts";
import { O_CLOEXEC, O_NONBLOCK } from "../../sys/abi/fcntl.ts";
import { syscall } from "../../sys/ffi.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import { readOwner, restoreOwner } from "./owner.ts";
import type { FileKind, FilesDump, OpenFile } from "./file-kind.ts";

export const timerfdKind: FileKind = {
  name: "timerfd",
  type: FdTypes.TIMERFD,
  recognise: ({ info }) => info.timerfd !== undefined,
  write: writeTimerfd,
  open: openTimerfd,
  settle: armTimerfd,
};

const NSEC_PER_SEC = 1_000_000_000n;

function writeTimerfd(file: OpenFile, id: number, dump: FilesDump): FileEntry {
  const fd = dump.borrow(file);
  syscall("timerfd_gettime", fd, Buffer.alloc(ITIMERSPEC_SIZE));
  const { timerfd } = readFdInfo({ pid: process.pid, fd });
  assert(timerfd !== undefined, `fd ${file.fd} of pid ${file.task.pid} is no timerfd`);
  const tfd: TimerfdEntry = {
    id,
    flags: file.info.flags & ~O_CLOEXEC,
    fown: readOwner(file, dump),
    clockid: timerfd.clockid,
    ticks: timerfd.ticks,
    settime_flags: timerfd.settimeFlags,
    vsec: BigInt(timerfd.value.sec),
    vnsec: BigInt(timerfd.value.nsec),
    isec: BigInt(timerfd.interval.sec),
    insec: BigInt(timerfd.interval.nsec),
  };
  return { type: FdTypes.TIMERFD, id, tfd };
}

function openTimerfd(program: Program, { id, tfd }: FileEntry): Argument {
  assert(tfd !== undefined, `file ${id} is no timerfd`);
  const fd = program.call("timerfd_create", [tfd.clockid, tfd.flags & O_NONBLOCK], {
    label: `make timerfd ${id} of clock ${tfd.clockid}`,
  });
  restoreOwner(program, tfd.fown, fd);
  return fd;
}

/** Late, so that as little as possible of the rest passes before the task runs. Setting the time clears the ticks. */
function armTimerfd(program: Program, { id, tfd }: FileEntry, fd: number): void {
  assert(tfd !== undefined, `file ${id} is no timerfd`);
  if (tfd.vsec !== 0n || tfd.vnsec !== 0n) {
    const { flags, seconds, nanoseconds } = expiration(tfd, readClock);
    const spec = Buffer.alloc(ITIMERSPEC_SIZE);
    spec.writeBigInt64LE(tfd.isec, 0);
    spec.writeBigInt64LE(tfd.insec, 8);
    spec.writeBigInt64LE(seconds, 16);
    spec.writeBigInt64LE(nanoseconds, 24);
    program.call("timerfd_settime", [fd, flags, program.data(spec), 0], {
      label: `arm timerfd ${id}`,
    });
  }
  if (tfd.ticks !== 0n) {
    const ticks = Buffer.alloc(8);
    ticks.writeBigUInt64LE(tfd.ticks);
    program.call("ioctl", [fd, TFD_IOC_SET_TICKS, program.data(ticks)], {
      label: `set the ${tfd.ticks} unread expirations of timerfd ${id}`,
      hint: "The kernel needs CONFIG_CHECKPOINT_RESTORE for this.",
    });
  }
}

/** What timerfd_settime gets. */
export interface Expiration {
  readonly flags: number;
  readonly seconds: bigint;
  readonly nanoseconds: bigint;
}

/**
 * When a saved timer fires next. Only on the clocks that can be set does an absolute time mean more than a relative one:
 * there, and for TFD_TIMER_CANCEL_ON_SET, it is computed from the engine's clock. All others are armed relative to the
 * moment of the call, which is right in a time namespace too.
 *
 * @param now gives a clock's time in nanoseconds.
 */
export function expiration(timer: TimerfdEntry, now: (clock: number) => bigint): Expiration {
  const absolute = (timer.settime_flags & TFD_TIMER_ABSTIME) !== 0;
  if (!absolute || (timer.clockid !== CLOCK_REALTIME && timer.clockid !== CLOCK_REALTIME_ALARM)) {
    return { flags: 0, seconds: timer.vsec, nanoseconds: timer.vnsec };
  }
  const at = now(timer.clockid) + timer.vsec * NSEC_PER_SEC + timer.vnsec;
  const flags = timer.settime_flags & (TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET);
  return { flags, seconds: at / NSEC_PER_SEC, nanoseconds: at % NSEC_PER_SEC };
}

/** The clock for alarms shows the same time, but not on a machine without a real-time clock. */
function readClock(clock: number): bigint {
  const time = Buffer.alloc(16);
  syscall("clock_gettime", clock === CLOCK_REALTIME_ALARM ? CLOCK_REALTIME : clock, time);
  return time.readBigInt64LE(0) * NSEC_PER_SEC + time.readBigInt64LE(8);
}
