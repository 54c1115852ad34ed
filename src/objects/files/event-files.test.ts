// eventfd, signalfd and timerfd: there and back in this process.
import { afterEach, describe, expect, it } from "vitest";
import { TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET } from "../../sys/abi/event-files.ts";
import { O_NONBLOCK } from "../../sys/abi/fcntl.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { readFdInfo, type FdInfo } from "../../proc/fdinfo.ts";
import type { FileKind } from "./file-kind.ts";
import { eventfdKind } from "./eventfd.ts";
import { DumpFixture, openFileOf, restoreHere } from "./live-file.fixture.ts";
import { signalfdKind } from "./signalfd.ts";
import { expiration, timerfdKind } from "./timerfd.ts";

const open: number[] = [];

function keep(fd: number): number {
  open.push(fd);
  return fd;
}

afterEach(() => {
  for (const fd of open.splice(0)) trySyscall("close", fd);
});

/** fdinfo of the restored copy of a descriptor of this process. */
function copyOf(kind: FileKind, fd: number): { readonly info: FdInfo; readonly fd: number } {
  using dump = new DumpFixture();
  const file = openFileOf(process.pid, fd);
  expect(kind.recognise(file, dump)).toBe(true);
  const copy = keep(restoreHere(kind, [kind.write(file, 7, dump)])[0] ?? -1);
  return { info: readFdInfo({ pid: process.pid, fd: copy }), fd: copy };
}

function word(value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(value);
  return bytes;
}

describe("eventfd", () => {
  it.each([
    ["zero", 0n, 0],
    ["small, not blocking", 5n, O_NONBLOCK],
    ["larger than 32 bits", 0x1_2345_6789n, 0],
    ["the largest", 0xffff_ffff_ffff_fffen, 0],
    ["of a semaphore", 3n, 1],
  ])("keeps a counter: %s", (_, count, flags) => {
    const fd = keep(syscall("eventfd2", 0, flags));
    if (count > 0n) syscall("write", fd, word(count), 8);
    const { info } = copyOf(eventfdKind, fd);
    expect(info.eventfd).toMatchObject({ count, semaphore: flags === 1 });
    expect(info.flags & O_NONBLOCK).toBe(flags & O_NONBLOCK);
  });
});

describe("signalfd", () => {
  it.each([0n, 1n << 1n, 1n << 63n, (1n << 16n) | (1n << 33n)])("keeps the set %x", (set) => {
    const fd = keep(syscall("signalfd4", -1, word(set), 8, O_NONBLOCK));
    const { info } = copyOf(signalfdKind, fd);
    expect(info.sigmask).toBe(set);
    expect(info.flags & O_NONBLOCK).toBe(O_NONBLOCK);
  });
});

const CLOCK_MONOTONIC = 1;

function timer(spec: { clock?: number; flags?: number; value: bigint; interval?: bigint }): number {
  const fd = keep(syscall("timerfd_create", spec.clock ?? CLOCK_MONOTONIC, O_NONBLOCK));
  const bytes = Buffer.alloc(32);
  const interval = spec.interval ?? 0n;
  bytes.writeBigInt64LE(interval / 1_000_000_000n, 0);
  bytes.writeBigInt64LE(interval % 1_000_000_000n, 8);
  bytes.writeBigInt64LE(spec.value / 1_000_000_000n, 16);
  bytes.writeBigInt64LE(spec.value % 1_000_000_000n, 24);
  syscall("timerfd_settime", fd, spec.flags ?? 0, bytes, 0);
  return fd;
}

function sleep(milliseconds: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);
}

describe("timerfd", () => {
  it("keeps the rest and the interval", () => {
    const { info } = copyOf(
      timerfdKind,
      timer({ value: 100_500_000_000n, interval: 7_000_000_001n }),
    );
    expect(info.timerfd).toMatchObject({ clockid: 1, ticks: 0n, interval: { sec: 7, nsec: 1 } });
    expect(info.timerfd?.value.sec).toBe(100);
    expect(info.flags & O_NONBLOCK).toBe(O_NONBLOCK);
  });

  it("keeps a disarmed timer disarmed", () => {
    const { info } = copyOf(timerfdKind, timer({ value: 0n }));
    expect(info.timerfd).toMatchObject({ ticks: 0n, value: { sec: 0, nsec: 0 } });
  });

  it("keeps the expiration of a single shot", () => {
    const fd = timer({ value: 1n });
    sleep(2);
    const { info, fd: copy } = copyOf(timerfdKind, fd);
    expect(info.timerfd).toMatchObject({ ticks: 1n, value: { sec: 0, nsec: 0 } });
    const count = Buffer.alloc(8);
    expect(trySyscall("read", copy, count, 8)).toBe(8);
    expect(count.readBigUInt64LE(0)).toBe(1n);
  });

  it("keeps a periodic timer running that nobody has read since it expired", () => {
    const fd = timer({ value: 1n, interval: 1_000_000_000n });
    sleep(2);
    const { info } = copyOf(timerfdKind, fd);
    expect(info.timerfd?.ticks).toBe(1n);
    expect(info.timerfd?.value.nsec).toBeGreaterThan(0);
  });

  it("keeps an absolute time that ends when the clock is set", () => {
    const flags = TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET;
    const at = BigInt(Math.floor(Date.now() / 1000) + 500) * 1_000_000_000n;
    const { info } = copyOf(timerfdKind, timer({ clock: 0, flags, value: at }));
    expect(info.timerfd).toMatchObject({ clockid: 0, settimeFlags: flags });
    expect(Math.abs((info.timerfd?.value.sec ?? 0) - 499)).toBeLessThanOrEqual(1);
  });
});

describe("expiration()", () => {
  const base = { id: 1, flags: 0, ticks: 0n, isec: 0n, insec: 0n, vsec: 3n, vnsec: 600_000_000n };
  const fown = { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 };
  const relative = { flags: 0, seconds: 3n, nanoseconds: 600_000_000n };
  it.each([
    ["a relative time", 0, 0, relative],
    ["an absolute time of a clock that cannot be set", 1, TFD_TIMER_ABSTIME, relative],
    ["an absolute time", 0, 1, { flags: 1, seconds: 14n, nanoseconds: 100_000_000n }],
    [
      "one that ends when the clock is set",
      8,
      3,
      { flags: 3, seconds: 14n, nanoseconds: 100_000_000n },
    ],
  ])("gives %s", (_, clockid, settime_flags, expected) => {
    expect(expiration({ ...base, fown, clockid, settime_flags }, () => 10_500_000_000n)).toEqual(
      expected,
    );
  });
});
