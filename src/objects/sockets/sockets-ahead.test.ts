// Sockets that were described while they could still change are described as they are in the end: as without having looked ahead.

import { chmodSync, mkdtempSync, renameSync, rmSync, unlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, expect, it, onTestFinished } from "vitest";
import { ImageSetReader } from "../../images/image-set-reader.ts";
import { ImageSetWriter } from "../../images/image-set-writer.ts";
import { F_SETFL, F_SETSIG, O_NONBLOCK, O_RDWR } from "../../sys/abi/fcntl.ts";
import * as inet from "../../sys/abi/inet.ts";
import * as so from "../../sys/abi/socket.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { setNumber, socketPair } from "../../sys/socket.ts";
import { openFileOf } from "../files/live-file.fixture.ts";
import { FileTable } from "../files/table.ts";
import { addressOfName } from "./unix-name.ts";

const OPTIONS = { shellJob: false, linkRemap: false, ghostLimit: 0, innerPid: () => undefined };
/** So many of a kind are asked at once. */
const ENOUGH = 32;

const opened: number[] = [];
afterEach(() => opened.splice(0).forEach((fd) => trySyscall("close", fd)));

interface Made {
  readonly pair: readonly [number, number];
  readonly udp: number;
  readonly bound: number;
  readonly listener: number;
  /** Of a unix listener with many connections. */
  readonly path: string;
  readonly name: Buffer;
  readonly all: readonly number[];
}

function makeSockets(): Made {
  const make = (family: number, type: number): number => {
    const fd = syscall("socket", family, type | so.SOCK_CLOEXEC, 0);
    opened.push(fd);
    return fd;
  };
  const address = Buffer.alloc(16);
  address.writeUInt16LE(so.AF_INET, 0);
  address.set([127, 0, 0, 1], 4);
  const pair = socketPair(so.AF_UNIX, so.SOCK_STREAM);
  opened.push(...pair);
  const bound = make(so.AF_INET, so.SOCK_DGRAM);
  const listener = make(so.AF_INET, so.SOCK_STREAM);
  for (const fd of [bound, listener]) syscall("bind", fd, address, address.length);
  syscall("listen", listener, 5);
  const udp = make(so.AF_INET, so.SOCK_DGRAM);
  const path = join(mkdtempSync(join(tmpdir(), "reprise-named-")), "socket");
  onTestFinished(() => {
    for (const directory of [dirname(path), `${dirname(path)}-elsewhere`])
      rmSync(directory, { recursive: true, force: true });
  });
  const server = make(so.AF_UNIX, so.SOCK_STREAM);
  const name = addressOfName(Buffer.from(`${path}\0`));
  syscall("bind", server, name, name.length);
  syscall("listen", server, ENOUGH);
  for (let count = 0; count < ENOUGH; count += 1) {
    syscall("connect", make(so.AF_UNIX, so.SOCK_STREAM), name, name.length);
    opened.push(syscall("accept4", server, 0, 0, so.SOCK_CLOEXEC));
  }
  // Some that are like others but for one thing.
  syscall("fcntl", make(so.AF_INET, so.SOCK_DGRAM), F_SETFL, O_NONBLOCK | O_RDWR);
  syscall("fchown", make(so.AF_INET, so.SOCK_DGRAM), 5, 6);
  setWord(make(so.AF_INET, so.SOCK_DGRAM), inet.SOL_IP, inet.IP_TTL, 33);
  setWord(make(so.AF_INET, so.SOCK_DGRAM), inet.SOL_IP, inet.IP_FREEBIND, 1);
  setWord(make(so.AF_INET6, so.SOCK_DGRAM), inet.SOL_IPV6, inet.IPV6_V6ONLY, 1);
  setWord(make(so.AF_INET, so.SOCK_DGRAM), so.SOL_SOCKET, so.SO_MARK, 7);
  // Others of each kind.
  for (let count = 0; count < ENOUGH; count += 1) {
    for (const type of [so.SOCK_STREAM, so.SOCK_DGRAM])
      opened.push(...socketPair(so.AF_UNIX, type));
    for (const family of [so.AF_INET, so.AF_INET6]) make(family, so.SOCK_DGRAM);
    syscall("listen", make(so.AF_INET, so.SOCK_STREAM), 1);
  }
  return { pair, udp, bound, listener, path, name, all: [...opened] };
}

/** What a dump writes of sockets: looked at ahead, if something is to happen before the end. */
function dumped(fds: readonly number[], happen?: () => void): unknown {
  const dir = mkdtempSync(join(tmpdir(), "reprise-ahead-"));
  onTestFinished(() => rmSync(dir, { recursive: true }));
  const images = new ImageSetWriter(dir, { sync: "none" });
  const table = new FileTable(images, OPTIONS);
  try {
    if (happen !== undefined) {
      const describe = table.beginSockets(process.pid, fds);
      expect(describe((fd) => openFileOf(process.pid, fd)).length).toBe(fds.length);
      table.encodeAhead();
      happen();
      expect(table.refresh(new Map())).toBe(true);
      table.complete(OPTIONS);
    }
    for (const fd of fds) table.describe(openFileOf(process.pid, fd));
    table.finish();
    images.commit({ img_version: 2 });
    return readSockets(new ImageSetReader(dir));
  } finally {
    table.end("alive");
    table.close();
  }
}

/** By inodes instead of ids: those that are described ahead come in another order. */
function readSockets(set: ImageSetReader): unknown {
  const inodes = new Map<number, number>();
  const files = set.read("files").map(({ type, id, usk, isk }) => {
    const ino = usk?.ino ?? isk?.ino ?? 0;
    inodes.set(id, ino);
    return { type, ino, socket: { ...usk, ...isk, id: 0 } };
  });
  const queues = set
    .readWithPayload("sk-queues")
    .map(({ value, payload }) => ({ ...value, payload, id_for: inodes.get(value.id_for) }));
  return { files: files.toSorted((a, b) => a.ino - b.ino), queues };
}

function setWord(fd: number, level: number, name: number, value: number): void {
  setNumber(fd, { level, name, value });
}

it.each<[string, (made: Made) => void]>([
  ["nothing", () => undefined],
  ["an option of all families", ({ udp }) => setWord(udp, so.SOL_SOCKET, so.SO_PRIORITY, 5)],
  [
    "an option that CRIU does not save",
    ({ pair }) => setWord(pair[0], so.SOL_SOCKET, so.SO_PEEK_OFF, 3),
  ],
  ["an option of IP", ({ udp }) => setWord(udp, inet.SOL_IP, inet.IP_TTL, 9)],
  ["flags", ({ pair }) => syscall("fcntl", pair[1], F_SETFL, O_NONBLOCK | O_RDWR)],
  ["a signal", ({ bound }) => syscall("fcntl", bound, F_SETSIG, 10)],
  ["a user", ({ udp }) => syscall("fchown", udp, 12, 34)],
  ["a connection is shut down", ({ pair }) => syscall("shutdown", pair[0], 1)],
  ["a datagram", ({ udp, bound }) => sendTo(udp, bound)],
  ["data in a stream", ({ pair }) => syscall("write", pair[0], Buffer.from("abc"), 3)],
  ["a backlog", ({ listener }) => syscall("listen", listener, 77)],
  ["a name", ({ path }) => renameSync(path, `${path}-elsewhere`)],
  ["a name is gone", ({ path }) => unlinkSync(path)],
  ["a mode", ({ path }) => chmodSync(path, 0o600)],
  ["a directory", ({ path }) => renameSync(dirname(path), `${dirname(path)}-elsewhere`)],
  ["somebody outside connects", ({ name }) => connectOnce(name)],
])("written as it is in the end, when it has changed meanwhile: %s", (_, change) => {
  const made = makeSockets();
  const ahead = dumped(made.all, () => change(made));
  const told = dumped(made.all);
  expect(ahead).toEqual(told);
});

/** By a socket that is not among those that are saved. */
function connectOnce(name: Buffer): void {
  const fd = syscall("socket", so.AF_UNIX, so.SOCK_STREAM | so.SOCK_CLOEXEC, 0);
  opened.push(fd);
  syscall("connect", fd, name, name.length);
}

/** Gives the sender an address, too. */
function sendTo(from: number, to: number): void {
  const address = Buffer.alloc(16);
  const length = Buffer.alloc(4);
  length.writeUInt32LE(address.length);
  syscall("getsockname", to, address, length);
  syscall("sendto", from, Buffer.from("x"), 1, 0, address, address.length);
}
