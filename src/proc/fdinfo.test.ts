import { closeSync, openSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { parseFdInfo, readFdInfo, readFdInfoIfOpen } from "./fdinfo.ts";

const HEAD_5_10 = "pos:\t0\nflags:\t02\nmnt_id:\t17\n";
const HEAD = `${HEAD_5_10}ino:\t1038\n`;

const plain = {
  pos: 0n,
  flags: 2,
  mntId: 17,
  ino: 1038n,
  eventfd: undefined,
  epoll: [],
  sigmask: undefined,
  inotify: [],
  fanotify: [],
  timerfd: undefined,
  pidfd: undefined,
  locks: [],
  ttyIndex: undefined,
  iff: undefined,
  extra: [],
};
const handle = { type: 1, bytes: Uint8Array.of(0xe8, 0xf7, 3, 0, 0, 0, 0, 0) };
const marks = { mflags: 0, mask: 0x20, ignoredMask: 0 };

describe("parseFdInfo()", () => {
  it.each([
    ["a plain file", HEAD, {}],
    ["a plain file of Linux 5.10", HEAD_5_10, { ino: undefined }],
    [
      "a large position and O_CLOEXEC",
      "pos:\t9223372036854775807\nflags:\t02100002\nmnt_id:\t24\nino:\t18446744073709551615\n",
      {
        pos: 9223372036854775807n,
        flags: 0o2100002,
        mntId: 24,
        ino: 18446744073709551615n,
      },
    ],
    [
      "an eventfd",
      `${HEAD}eventfd-count:              12c\neventfd-id: 1\neventfd-semaphore: 1\n`,
      { eventfd: { count: 300n, id: 1, semaphore: true } },
    ],
    [
      "an eventfd of Linux 5.10",
      `${HEAD_5_10}eventfd-count: ffffffffffffffff\neventfd-id: 42\n`,
      {
        ino: undefined,
        eventfd: { count: 0xffffffffffffffffn, id: 42, semaphore: undefined },
      },
    ],
    [
      "an epoll",
      `${HEAD}tfd:        5 events:       19 data:                5  pos:0 ino:d12a sdev:f\n` +
        "tfd:       12 events: 80000019 data: ffffffffffffffff  pos:4096 ino:1 sdev:fe00000\n",
      {
        epoll: [
          { tfd: 5, events: 0x19, data: 5n, pos: 0n, ino: 0xd12an, sdev: 15 },
          {
            tfd: 12,
            events: 0x80000019,
            data: 0xffffffffffffffffn,
            pos: 4096n,
            ino: 1n,
            sdev: 0xfe00000,
          },
        ],
      },
    ],
    [
      "an epoll of Linux 4.9",
      `${HEAD_5_10}tfd:        5 events:       1d data: ffffffffffffffff\n`,
      {
        ino: undefined,
        epoll: [
          {
            tfd: 5,
            events: 0x1d,
            data: 0xffffffffffffffffn,
            pos: 0n,
            ino: undefined,
            sdev: undefined,
          },
        ],
      },
    ],
    ["a signalfd", `${HEAD}sigmask:\t8000000000000005\n`, { sigmask: 0x8000000000000005n }],
    [
      "an inotify with a watch number that is not decimal",
      `${HEAD}inotify wd:1f ino:3f7e8 sdev:fe00000 mask:100 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:e8f7030000000000\n`,
      {
        inotify: [{ wd: 31, ino: 0x3f7e8n, sdev: 0xfe00000, mask: 0x100, ignoredMask: 0, handle }],
      },
    ],
    [
      "an inotify on a file system without handles",
      `${HEAD}inotify wd:2 ino:9 sdev:17 mask:fff ignored_mask:0 \n`,
      { inotify: [{ wd: 2, ino: 9n, sdev: 0x17, mask: 0xfff, ignoredMask: 0, handle: undefined }] },
    ],
    [
      "a fanotify",
      `${HEAD}fanotify flags:10 event-flags:8000\n` +
        "fanotify sdev:fe00000 mflags:0 mask:20 ignored_mask:0\n" +
        "fanotify mnt_id:1b mflags:40 mask:20 ignored_mask:3\n" +
        "fanotify ino:3f7e8 sdev:fe00000 mflags:0 mask:20 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:e8f7030000000000\n" +
        "fanotify mnt_ns:4026531832 mflags:0 mask:20 ignored_mask:0\n" +
        "fanotify something:new\n",
      {
        fanotify: [
          { kind: "group", flags: 0x10, eventFlags: 0x8000 },
          { kind: "filesystem", ...marks, sdev: 0xfe00000 },
          { kind: "mount", mflags: 0x40, mask: 0x20, ignoredMask: 3, mntId: 0x1b },
          { kind: "inode", ...marks, ino: 0x3f7e8n, sdev: 0xfe00000, handle },
          { kind: "mount namespace", ...marks, mntNs: 4026531832 },
        ],
        extra: ["fanotify something:new"],
      },
    ],
    [
      "a timerfd",
      `${HEAD}clockid: 7\nticks: 3\nsettime flags: 03\nit_value: (8, 999150030)\nit_interval: (5, 7)\n`,
      {
        timerfd: {
          clockid: 7,
          ticks: 3n,
          settimeFlags: 3,
          value: { sec: 8, nsec: 999150030 },
          interval: { sec: 5, nsec: 7 },
        },
      },
    ],
    [
      "a pidfd into an inner namespace",
      `${HEAD}Pid:\t26604\nNSpid:\t26604\t7\t1\n`,
      { pidfd: { pid: 26604, nsPid: [26604, 7, 1] } },
    ],
    [
      "a pidfd of a reaped process",
      `${HEAD}Pid:\t-1\nNSpid:\t\n`,
      { pidfd: { pid: -1, nsPid: [] } },
    ],
    [
      "locks and a lease",
      `${HEAD}lock:\t1: FLOCK  ADVISORY  WRITE 26604 fe:00:2146795 0 EOF\n` +
        "lock:\t2: POSIX  ADVISORY  READ 26604 08:1a:18446744073709551615 5 14\n" +
        "lock:\t3: OFDLCK ADVISORY  WRITE -1 00:13:11691 0 9223372036854775806\n" +
        "lock:\t4: LEASE  ACTIVE    READ  26604 <none>:0 0 EOF\n",
      {
        locks: [
          {
            kind: "FLOCK",
            mode: "ADVISORY",
            access: "WRITE",
            pid: 26604,
            devMajor: 0xfe,
            devMinor: 0,
            inode: 2146795n,
            start: 0n,
            end: "EOF",
          },
          {
            kind: "POSIX",
            mode: "ADVISORY",
            access: "READ",
            pid: 26604,
            devMajor: 8,
            devMinor: 0x1a,
            inode: 18446744073709551615n,
            start: 5n,
            end: 14n,
          },
          {
            kind: "OFDLCK",
            mode: "ADVISORY",
            access: "WRITE",
            pid: -1,
            devMajor: 0,
            devMinor: 0x13,
            inode: 11691n,
            start: 0n,
            end: 9223372036854775806n,
          },
          {
            kind: "LEASE",
            mode: "ACTIVE",
            access: "READ",
            pid: 26604,
            devMajor: 0,
            devMinor: 0,
            inode: 0n,
            start: 0n,
            end: "EOF",
          },
        ],
      },
    ],
    ["a terminal's master", `${HEAD}tty-index:\t11\n`, { ttyIndex: 11 }],
    ["a tun that is not attached", `${HEAD}iff:\t\n`, { iff: "" }],
    ["an attached tun", `${HEAD}iff:\ttun0\n`, { iff: "tun0" }],
    [
      "lines that are not known, in their order",
      `${HEAD}pending:\t0\nAPI:\taa:0:80000000000001ff\nno colon\n`,
      { extra: ["pending:\t0", "API:\taa:0:80000000000001ff", "no colon"] },
    ],
  ])("reads %s", (_, text, expected) => {
    expect(parseFdInfo(text)).toStrictEqual({ ...plain, ...expected });
  });
});

describe("readFdInfo()", () => {
  it("reads an open file and knows a closed one", () => {
    const fd = openSync("/dev/null", "r+");
    const info = readFdInfo({ pid: process.pid, fd });
    expect(info.flags & 3).toBe(2);
    expect(info.mntId).toBeGreaterThan(0);
    closeSync(fd);
    expect(readFdInfoIfOpen({ pid: process.pid, fd: 1_000_000 })).toBeUndefined();
    expect(() => readFdInfo({ pid: process.pid, fd: 1_000_000 })).toThrow(
      expect.objectContaining({ code: "KERNEL_FEATURE" }),
    );
    expect(readFdInfoIfOpen({ pid: 2 ** 30, fd })).toBeUndefined();
  });
});
