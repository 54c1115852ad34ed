// Terminals: pure tables, pairs of this process there and back, and a child in a terminal from outside.
import { spawn, type ChildProcess } from "node:child_process";
import { chmodSync, readdirSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { afterEach, beforeAll, describe, expect, it } from "vitest";
import { ImageSetReader } from "../../images/image-set-reader.ts";
import type {
  FileEntry,
  TtyDataEntry,
  TtyInfoEntry,
} from "../../images/schema/messages.generated.ts";
import { readFdInfo } from "../../proc/fdinfo.ts";
import { readStat } from "../../proc/stat.ts";
import { FIONREAD, O_CLOEXEC, O_NOCTTY, O_NONBLOCK, O_RDWR } from "../../sys/abi/fcntl.ts";
import {
  ICANON,
  TCGETS,
  TCSETS,
  TIOCGPKT,
  TIOCGPTN,
  TIOCGPTPEER,
  TIOCPKT,
  TIOCNOTTY,
  TIOCSPTLCK,
  TIOCSWINSZ,
} from "../../sys/abi/tty.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { runHere } from "../../tracee/local.ts";
import { Program } from "../../tracee/program.ts";
import {
  controllingTerminals,
  makeControllingTerminal,
  setForeground,
} from "./controlling-terminal.ts";
import { DumpFixture, openFileOf, restoreHere, type RestoreFixture } from "./live-file.fixture.ts";
import { deviceKind, ttyKind } from "./tty.ts";
import {
  copyDataInFlight,
  quietTermios,
  readNumber,
  readSettings,
  termiosBytes,
  termiosEntry,
} from "./tty-state.ts";

const open: number[] = [];
const children: ChildProcess[] = [];

function keep(fd: number): number {
  open.push(fd);
  return fd;
}

function closeAll(): void {
  for (const fd of open.splice(0)) trySyscall("close", fd);
}

afterEach(() => {
  closeAll();
  for (const child of children.splice(0)) child.kill("SIGKILL");
});

interface Pair {
  readonly master: number;
  readonly slave: number;
  readonly index: number;
}

function makePair(): Pair {
  const flags = O_RDWR | O_NOCTTY | O_CLOEXEC;
  const master = keep(syscall("openat", -100, Buffer.from("/dev/ptmx\0"), flags, 0));
  syscall("ioctl", master, TIOCSPTLCK, Buffer.alloc(4));
  const slave = keep(syscall("ioctl", master, TIOCGPTPEER, flags));
  return { master, slave, index: readNumber(master, TIOCGPTN) };
}

function dumpOf(fds: readonly number[], pid = process.pid, shellJob = false) {
  using dump = new DumpFixture({ shellJob }, new Map([[pid, pid]]));
  const entries = fds.map((fd, id) => {
    const file = openFileOf(pid, fd);
    expect(ttyKind.recognise(file, dump)).toBe(true);
    return ttyKind.write(file, id + 1, dump);
  });
  dump.finish();
  dump.images.commit({ img_version: 2 });
  const reader = new ImageSetReader(dump.images.dir);
  const more: RestoreFixture = {
    entries: dump.entries,
    ttyInfos: reader.read("tty-info"),
    ttyData: reader.read("tty-data"),
  };
  return { entries, more };
}

function dataOf({ ttyData }: RestoreFixture, id: number): string | undefined {
  const found = ttyData?.find(({ tty_id }: TtyDataEntry) => tty_id === id)?.data;
  return found === undefined ? undefined : Buffer.from(found).toString();
}

function write(fd: number, text: string): void {
  const bytes = Buffer.from(text);
  expect(syscall("write", fd, bytes, bytes.length)).toBe(bytes.length);
}

function readText(fd: number): string {
  const bytes = Buffer.alloc(4096);
  const got = trySyscall("read", fd, bytes, bytes.length);
  return got < 0 ? `error ${got}` : bytes.toString("utf8", 0, got);
}

describe("deviceKind()", () => {
  it.each([
    [5, 0, "current"],
    [5, 1, "console"],
    [5, 2, "master"],
    [5, 3, undefined],
    [4, 1, "virtual console"],
    [4, 64, "serial line"],
    [128, 0, "master"],
    [136, 7, "slave"],
    [143, 0, "slave"],
    [144, 0, undefined],
    [188, 0, "serial line"],
    [1, 3, undefined],
  ])("knows %i:%i", (major, minor, kind) => {
    expect(deviceKind(major, minor)).toBe(kind);
  });
});

describe("termiosEntry()", () => {
  const bytes = Buffer.from(Array.from({ length: 36 }, (_, index) => 0xc0 + index));

  it("packs the characters into the first words, and is undone by termiosBytes()", () => {
    const entry = termiosEntry(bytes);
    expect(entry).toMatchObject({ c_iflag: 0xc3c2c1c0, c_lflag: 0xcfcecdcc, c_line: 0xd0 });
    expect(entry.c_cc).toHaveLength(19);
    expect(entry.c_cc.slice(0, 6)).toEqual([
      0xd4d3d2d1, 0xd8d7d6d5, 0xdcdbdad9, 0xe0dfdedd, 0xe3e2e1, 0,
    ]);
    expect(termiosBytes(entry)).toEqual(bytes);
  });

  it("ignores what CRIU leaves in the words behind the characters", () => {
    const entry = termiosEntry(bytes);
    const c_cc = entry.c_cc.map((word, index) =>
      index > 4 ? 0xdead : index === 4 ? word + 0x77000000 : word,
    );
    expect(termiosBytes({ ...entry, c_cc })).toEqual(bytes);
  });

  it("quietTermios() leaves of the flags only ICANON", () => {
    const quiet = quietTermios(bytes);
    expect([0, 4, 12].map((at) => quiet.readUInt32LE(at))).toEqual([0, 0, 0xcfcecdcc & ICANON]);
    expect(quiet.readUInt32LE(8)).toBe(bytes.readUInt32LE(8));
  });
});

function info(id: number, sid: number, more: Partial<TtyInfoEntry> = {}): TtyInfoEntry {
  const termios = termiosEntry(Buffer.alloc(36));
  const modes = { locked: false, exclusive: false, packet_mode: false };
  return {
    id,
    type: 1,
    ...modes,
    sid,
    pgrp: 77,
    rdev: 0,
    termios,
    pty: { index: id >> 1 },
    ...more,
  };
}

describe("controllingTerminals()", () => {
  const files = new Map<number, FileEntry>();
  const fown = { uid: 0, euid: 0, signum: 0, pid_type: 0, pid: 0 };
  for (const [id, tty_info_id] of [
    [1, 11],
    [2, 10],
    [3, 21],
    [4, 30],
    [5, 41],
    [6, 40],
  ] as const) {
    files.set(id, { type: 11, id, tty: { id, tty_info_id, flags: 2, fown } });
  }
  const infos = [
    info(11, 70),
    info(10, 70),
    info(21, 71),
    info(30, 72),
    info(41, 99),
    info(40, 99),
  ];
  const tasks = new Map([70, 71, 72].map((pid) => [pid, { pstree: { pid, sid: pid } }]));
  it("names the slave, or the master without one; not terminals from outside nor sessions from outside", () => {
    const set = { files, ttyInfos: new Map(infos.map((entry) => [entry.id, entry])), tasks };
    expect([...controllingTerminals(set as never).values()]).toEqual([
      { sid: 70, fileId: 2, end: "slave", pgrp: 77 },
      { sid: 71, fileId: 3, end: "master", pgrp: 77 },
    ]);
  });
});

describe("a pair in the tree", () => {
  it("comes back under its index, with settings, size and modes", () => {
    makePair();
    const { master, slave, index } = makePair();
    const termios = Buffer.alloc(36);
    syscall("ioctl", slave, TCGETS, termios);
    termios.writeUInt8(0x1f, 17 + 3);
    syscall("ioctl", slave, TCSETS, termios);
    syscall("ioctl", master, TIOCSWINSZ, Buffer.from([50, 0, 132, 0, 1, 0, 2, 0]));
    syscall("ioctl", master, TIOCPKT, Buffer.from([1, 0, 0, 0]));
    chmodSync(`/dev/pts/${index}`, 0o622);
    const before = readSettings(slave);
    expect(before?.winsize).toEqual({ ws_row: 50, ws_col: 132, ws_xpixel: 1, ws_ypixel: 2 });
    const { entries, more } = dumpOf([master, slave]);
    expect(more.ttyInfos?.map(({ id, packet_mode, rdev }) => ({ id, packet_mode, rdev }))).toEqual([
      { id: index * 2 + 1, packet_mode: true, rdev: 1282 },
      { id: index * 2, packet_mode: false, rdev: 0x8800 + index },
    ]);
    expect(more.ttyData).toEqual([]);
    closeAll();
    const [newMaster = -1, newSlave = -1] = restoreHere(ttyKind, entries, more).map(keep);
    expect(readFdInfo({ pid: process.pid, fd: newMaster }).ttyIndex).toBe(index);
    expect(openFileOf(process.pid, newSlave).stat.rdevMinor).toBe(index);
    expect(openFileOf(process.pid, newSlave).stat.mode & 0o777).toBe(0o622);
    expect(readSettings(newSlave)).toEqual(before);
    expect(readNumber(newMaster, TIOCGPKT)).toBe(1);
    write(newSlave, "works");
    expect(readText(newMaster)).toBe("\0works");
  });

  it("keeps lines, an unfinished line and output on its way, here and in the copy", () => {
    const { master, slave, index } = makePair();
    write(slave, "out\nput");
    write(master, "first\nsecond\nunfin");
    const { entries, more } = dumpOf([slave, master]);
    // The echo of what was typed comes after the output.
    const atMaster = "out\r\nputfirst\r\nsecond\r\nunfin";
    expect(dataOf(more, index * 2)).toBe("first\nsecond\nunfin");
    expect(dataOf(more, index * 2 + 1)).toBe(atMaster);
    const check = (pair: { readonly master: number; readonly slave: number }): void => {
      expect(readText(pair.master)).toBe(atMaster);
      expect([readText(pair.slave), readText(pair.slave)]).toEqual(["first\n", "second\n"]);
      expect(readNumber(pair.slave, FIONREAD)).toBe(0);
      write(pair.master, "ished\n");
      expect(readText(pair.slave)).toBe("unfinished\n");
    };
    check({ master, slave });
    closeAll();
    const [newSlave = -1, newMaster = -1] = restoreHere(ttyKind, entries, more).map(keep);
    check({ master: newMaster, slave: newSlave });
  });

  it("takes what is still on its way, and its echo, and puts it back without a second echo", () => {
    for (let round = 0; round < 200; round++) {
      const { master, slave } = makePair();
      write(master, "line\nunfin");
      const before = copyDataInFlight(master, slave);
      const after = copyDataInFlight(master, slave);
      expect([before.atMaster.toString(), before.atSlave.toString()]).toEqual([
        "line\r\nunfin",
        "line\nunfin",
      ]);
      expect(after).toEqual(before);
      closeAll();
    }
  });

  it("keeps raw data and flags", () => {
    const { master, slave, index } = makePair();
    const termios = Buffer.alloc(36);
    syscall("ioctl", slave, TCGETS, termios);
    termios.writeUInt32LE(0, 12);
    syscall("ioctl", slave, TCSETS, termios);
    syscall("fcntl", slave, 4, O_NONBLOCK);
    write(master, "\x03\x04raw");
    const { entries, more } = dumpOf([master, slave]);
    expect(dataOf(more, index * 2)).toBe("\x03\x04raw");
    closeAll();
    const [, newSlave = -1] = restoreHere(ttyKind, entries, more).map(keep);
    expect(readText(newSlave)).toBe("\x03\x04raw");
    expect(readText(newSlave)).toBe("error -11");
  });

  it("is refused when its index is in use", () => {
    const { master, slave, index } = makePair();
    const { entries, more } = dumpOf([master, slave]);
    expect(() => restoreHere(ttyKind, entries, more)).toThrow(
      `cannot make terminal /dev/pts/${index} again: this number is in use`,
    );
  });

  it("comes back hung up when it was", () => {
    const { master, slave } = makePair();
    syscall("close", master);
    const { entries, more } = dumpOf([slave]);
    expect(more.ttyInfos?.[0]?.termios).toBeUndefined();
    closeAll();
    const [copy = -1] = restoreHere(ttyKind, entries, more).map(keep);
    expect(trySyscall("ioctl", copy, TCGETS, Buffer.alloc(36))).toBe(-5);
    expect(openFileOf(process.pid, copy).target).toMatch(/^\/dev\/pts\/\d+ \(deleted\)$/);
  });
});

describe("a terminal from outside", () => {
  async function childOn(slave: number): Promise<number> {
    const child = spawn("setsid", ["--ctty", "sleep", "60"], { stdio: [slave, slave, "ignore"] });
    children.push(child);
    const pid = child.pid ?? -1;
    for (let tries = 0; tries < 200 && readStat(pid).comm !== "sleep"; tries++) await delay(5);
    return pid;
  }

  it("is refused without --shell-job, and shows the session with it", async () => {
    const { slave, index } = makePair();
    const pid = await childOn(slave);
    expect(() => dumpOf([0], pid)).toThrow(
      `cannot dump fd 0 of pid ${pid} (/dev/pts/${index}): it is a terminal (/dev/pts/${index}) whose other end is not in the tree`,
    );
    const { more } = dumpOf([0], pid, true);
    expect(more.ttyInfos).toMatchObject([
      { id: index * 2, type: 1, sid: pid, pgrp: pid, pty: { index } },
    ]);
  });

  it("becomes the terminal of the restore", () => {
    const outside = makePair();
    const { entries, more } = dumpOf([outside.slave], process.pid, true);
    expect(() => restoreHere(ttyKind, entries, more)).toThrow("its other end is not in the images");
    const own = makePair();
    const input = keep(syscall("fcntl", 0, 0, 300));
    syscall("dup3", own.slave, 0, 0);
    try {
      const [copy = -1] = restoreHere(ttyKind, entries, { ...more, shellJob: true }).map(keep);
      expect(openFileOf(process.pid, copy).target).toBe(`/dev/pts/${own.index}`);
    } finally {
      syscall("dup3", input, 0, 0);
    }
  });
});

describe("a console", () => {
  it("is one of its kind in an image", () => {
    const fd = keep(syscall("openat", -100, Buffer.from("/dev/null\0"), 0, 0));
    const file = openFileOf(process.pid, fd);
    using dump = new DumpFixture();
    const consoleOf = (rdevMinor: number) => ({
      ...file,
      target: `/dev/tty${rdevMinor}`,
      stat: { ...file.stat, rdevMajor: 4, rdevMinor },
    });
    expect(ttyKind.recognise(consoleOf(3), dump)).toBe(true);
    expect(ttyKind.write(consoleOf(3), 1, dump).tty?.tty_info_id).toBe(2008);
    expect(ttyKind.write(consoleOf(3), 2, dump).tty?.tty_info_id).toBe(2008);
    expect(() => ttyKind.write(consoleOf(4), 3, dump)).toThrow(
      "(/dev/tty4): it is a second virtual console",
    );
  });
});

describe("makeControllingTerminal()", () => {
  beforeAll(() => {
    // The end of a leader's terminal is a SIGHUP for it.
    process.on("SIGHUP", () => undefined);
    expect(readdirSync("/dev/pts")).toContain("ptmx");
  });

  it.each(["slave", "master"] as const)("gives a session its terminal, through the %s", (end) => {
    if (readStat(process.pid).session !== process.pid) syscall("setsid");
    const { master, slave, index } = makePair();
    const program = new Program();
    makeControllingTerminal(program, end === "slave" ? slave : master, { end });
    setForeground(program, slave, process.pid);
    runHere(program);
    const stat = readStat(process.pid);
    expect(stat.ttyNr).toBe(0x8800 + index);
    expect(stat.tpgid).toBe(process.pid);
    const { more } = dumpOf([slave, master]);
    expect(more.ttyInfos?.map(({ sid, pgrp }) => [sid, pgrp])).toEqual([
      [process.pid, process.pid],
      [process.pid, process.pid],
    ]);
    syscall("ioctl", slave, TIOCNOTTY, 0);
  });
});
