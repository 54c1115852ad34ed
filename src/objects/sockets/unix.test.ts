import { afterEach, describe, expect, it } from "vitest";
import { mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { readFdStat } from "../../proc/links.ts";
import { readUnixSockets } from "../../proc/sock-diag.ts";
import * as so from "../../sys/abi/socket.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import {
  encodeControl,
  getNumber,
  getOption,
  receiveMessage,
  sendMessage,
  setNumber,
  socketPair,
} from "../../sys/socket.ts";
import { FilesOfSet, SavedFiles } from "../files/round-trip.fixture.ts";
import { addressOfName } from "./unix-name.ts";

const opened: number[] = [];
const dirs: string[] = [];

afterEach(() => {
  for (const fd of opened.splice(0)) trySyscall("close", fd);
  for (const dir of dirs.splice(0)) rmSync(dir, { recursive: true });
});

function pair(type: number): [number, number] {
  const ends = socketPair(so.AF_UNIX, type);
  opened.push(...ends);
  return ends;
}

function socket(type: number): number {
  const fd = syscall("socket", so.AF_UNIX, type | so.SOCK_CLOEXEC, 0);
  opened.push(fd);
  return fd;
}

let names = 0;

function abstractName(): Buffer {
  return addressOfName(Buffer.from(`\0reprise-test-${process.pid}-${names++}`));
}

function bind(fd: number, address: Buffer): void {
  syscall("bind", fd, address, address.length);
}

function connect(fd: number, address: Buffer): void {
  syscall("connect", fd, address, address.length);
}

function send(fd: number, text: string, flags = 0): void {
  const data = Buffer.from(text);
  expect(trySyscall("sendto", fd, data, data.length, flags, 0, 0)).toBe(data.length);
}

/** What comes next: text, or the negative error number. */
function next(fd: number, flags = 0): string | number {
  const message = receiveMessage(fd, Buffer.alloc(400_000), so.MSG_DONTWAIT | flags);
  return typeof message === "number" ? message : message.data.toString();
}

function closeOpened(): void {
  for (const fd of opened.splice(0)) trySyscall("close", fd);
}

const EAGAIN = -11;

describe("unix sockets come back", () => {
  it.each([
    ["datagrams", so.SOCK_DGRAM],
    ["packets", so.SOCK_SEQPACKET],
  ])("with empty and long %s in their order, and those of the original untouched", (_, type) => {
    const [a, b] = pair(type);
    setNumber(a, { level: so.SOL_SOCKET, name: so.SO_SNDBUFFORCE, value: 600_000 });
    const texts = ["", "one", "", "", "x".repeat(300_000), ""];
    for (const text of texts) send(a, text);
    using saved = new SavedFiles([a, b]);
    for (const text of texts) expect(next(b)).toBe(text);
    expect(next(b)).toBe(EAGAIN);
    const [, end = -1] = saved.restore();
    for (const text of texts) expect(next(end)).toBe(text);
    expect(next(end)).toBe(EAGAIN);
  });

  it("with empty packets before the end that a shutdown makes", () => {
    const [a, b] = pair(so.SOCK_SEQPACKET);
    for (const text of ["", "last", ""]) send(a, text);
    syscall("shutdown", a, so.SHUT_WR);
    using saved = new SavedFiles([a, b]);
    expect(getNumber(b, so.SOL_SOCKET, so.SO_PASSCRED)).toBe(0);
    expect(saved.set.skQueues.map(({ value }) => value.length)).toEqual([0, 4, 0]);
  });

  it("with a peek offset of the original as it was", () => {
    const [a, b] = pair(so.SOCK_STREAM);
    setNumber(b, { level: so.SOL_SOCKET, name: so.SO_PEEK_OFF, value: 2 });
    send(a, "abcdef");
    using saved = new SavedFiles([a, b]);
    expect(getNumber(b, so.SOL_SOCKET, so.SO_PEEK_OFF)).toBe(2);
    expect(next(b, so.MSG_PEEK)).toBe("cdef");
    expect(saved.ids).toHaveLength(2);
  });

  it("with a stream longer than one packet of the image", () => {
    const [a, b] = pair(so.SOCK_STREAM);
    setNumber(a, { level: so.SOL_SOCKET, name: so.SO_SNDBUFFORCE, value: 4_000_000 });
    const text = Array.from({ length: 100_000 }, (_, index) => index.toString(36)).join(",");
    send(a, text, so.MSG_DONTWAIT);
    using saved = new SavedFiles([a, b]);
    const [, end = -1] = saved.restore();
    let got = "";
    for (let part = next(end); typeof part === "string"; part = next(end)) got += part;
    expect(got === text).toBe(true);
    expect(saved.set.skQueues.length).toBeGreaterThan(1);
  });

  it("with a file in flight at its place in a stream", () => {
    const [a, b] = pair(so.SOCK_STREAM);
    send(a, "before");
    const number = Buffer.alloc(4);
    number.writeInt32LE(a);
    const control = encodeControl({ level: so.SOL_SOCKET, type: so.SCM_RIGHTS, data: number });
    expect(sendMessage(a, Buffer.from("with"), { control })).toBe(4);
    send(a, "after");
    using saved = new SavedFiles([a, b]);
    const packets = saved.set.skQueues.map(({ value }) => [
      value.length,
      value.scm.flatMap(({ rights }) => rights),
    ]);
    expect(packets).toEqual([
      [6, []],
      [4, [saved.ids[0]]],
      [5, []],
    ]);
  });

  it("listening, with those who wait, and the backlog", () => {
    const address = abstractName();
    const listener = socket(so.SOCK_STREAM);
    bind(listener, address);
    syscall("listen", listener, 3);
    const clients = [socket(so.SOCK_STREAM), socket(so.SOCK_STREAM)];
    for (const client of clients.toReversed()) connect(client, address);
    using saved = new SavedFiles([listener, ...clients]);
    closeOpened();
    const [again = -1, one = -1, two = -1] = saved.restore();
    for (const client of [two, one]) {
      const accepted = syscall("accept4", again, 0, 0, so.SOCK_CLOEXEC);
      opened.push(accepted);
      send(accepted, "welcome");
      expect(next(client)).toBe("welcome");
    }
    expect(saved.set.files.get(saved.ids[0] ?? -1)?.usk?.backlog).toBe(3);
    expect(getOption(again, { level: so.SOL_SOCKET, name: so.SO_ACCEPTCONN, size: 4 })).toEqual(
      Buffer.from([1, 0, 0, 0]),
    );
  });

  it("at their path, with owner and mode, where a dead one's file is left", () => {
    const dir = mkdtempSync(join(tmpdir(), "reprise-unix-"));
    dirs.push(dir);
    const path = join(dir, "s");
    const listener = socket(so.SOCK_STREAM);
    bind(listener, addressOfName(Buffer.from(`${path}\0`)));
    syscall("listen", listener, 3);
    syscall("fchmodat", -100, Buffer.from(`${path}\0`), 0o601);
    using saved = new SavedFiles([listener]);
    expect(() => saved.restore()).toThrow(/another process has a socket at/);
    closeOpened();
    saved.restore();
    expect(statSync(path).mode & 0o7777).toBe(0o601);
    connect(socket(so.SOCK_STREAM), addressOfName(Buffer.from(`${path}\0`)));
  });

  it("but not over a file that is no socket", () => {
    const dir = mkdtempSync(join(tmpdir(), "reprise-unix-"));
    dirs.push(dir);
    const path = join(dir, "s");
    bind(socket(so.SOCK_DGRAM), addressOfName(Buffer.from(`${path}\0`)));
    using saved = new SavedFiles([...opened]);
    closeOpened();
    rmSync(path);
    writeFileSync(path, "precious");
    expect(() => saved.restore()).toThrow(/is no socket now/);
    expect(statSync(path).isFile()).toBe(true);
  });
});

it("the peer's entry comes first, which CRIU needs", () => {
  const [client, server] = [socket(so.SOCK_DGRAM), socket(so.SOCK_DGRAM)];
  const address = abstractName();
  bind(server, address);
  connect(client, address);
  using saved = new SavedFiles([client, server]);
  const [first = -1, second = -1] = saved.ids;
  expect([...saved.set.files.keys()]).toEqual([second, first]);
});

describe("a dump refuses", () => {
  it("half of a stream connection", () => {
    const [a] = pair(so.SOCK_STREAM);
    expect(() => new SavedFiles([a])).toThrow(/half of a stream connection/);
    expect(() => new SavedFiles([a], { extUnixSk: true })).toThrow(/half of a stream connection/);
  });

  it("a datagram socket whose peer is outside, unless that is wanted and the peer has a name", () => {
    const [server, client] = [socket(so.SOCK_DGRAM), socket(so.SOCK_DGRAM)];
    const address = abstractName();
    bind(server, address);
    connect(client, address);
    expect(() => new SavedFiles([client])).toThrow(/outside of the tree \(@reprise-test/);
    const [nameless] = pair(so.SOCK_DGRAM);
    expect(() => new SavedFiles([nameless], { extUnixSk: true })).toThrow(/has no name/);
    using saved = new SavedFiles([client], { extUnixSk: true });
    expect([...saved.set.files.values()].map(({ usk }) => usk?.uflags)).toEqual([1, 0]);
    expect(() => saved.restore()).toThrow(/it was connected to a socket outside/);
  });

  it("data in a connection that is not accepted", () => {
    const [listener, client] = [socket(so.SOCK_STREAM), socket(so.SOCK_STREAM)];
    const address = abstractName();
    bind(listener, address);
    syscall("listen", listener, 3);
    connect(client, address);
    send(client, "hello");
    expect(() => new SavedFiles([listener, client])).toThrow(/not accepted yet/);
  });

  it("urgent data and credentials", () => {
    const [a, b] = pair(so.SOCK_STREAM);
    send(a, "!", so.MSG_OOB);
    expect(() => new SavedFiles([a, b])).toThrow(/urgent data/);
    const [c, d] = pair(so.SOCK_DGRAM);
    setNumber(d, { level: so.SOL_SOCKET, name: so.SO_PASSCRED, value: 1 });
    send(c, "me");
    expect(() => new SavedFiles([c, d])).toThrow(/SCM_CREDENTIALS/);
    expect(next(d)).toBe("me");
  });
});

it("a set of CRIU comes back: pairs, listeners, a client that waits, queues with files, shutdown", () => {
  const dir = join(import.meta.dirname, "../../../test/fixtures/criu-images/unix/img");
  using files = new FilesOfSet(dir, CRIU_SOCKETS);
  mkdirSync(CRIU_DIRECTORY, { recursive: true });
  dirs.push(CRIU_DIRECTORY);
  const fds = files.restore();
  const entries = CRIU_SOCKETS.map((id) => files.set.files.get(id)?.usk);
  const sockets = new Map(readUnixSockets().map((one) => [one.inode, one]));
  const live = fds.map((fd) => sockets.get(Number(readFdStat(process.pid, fd).inode)));
  expect(live.map((one) => [one?.type, one?.state])).toEqual(
    entries.map((one) => [one?.type, one?.state]),
  );
  expect(live.map((one) => one?.shutdown)).toEqual(entries.map((one) => one?.shutdown ?? 0));
  expect(live.map((one) => one?.name.toString())).toEqual(
    entries.map((one) => Buffer.from(one?.name ?? []).toString()),
  );
  for (const { value } of files.set.skQueues) {
    const fd = fds[CRIU_SOCKETS.indexOf(value.id_for)] ?? -1;
    const message = receiveMessage(fd, Buffer.alloc(value.length), so.MSG_DONTWAIT);
    if (typeof message === "number") throw new Error(`socket ${value.id_for}: ${message}`);
    expect(message.length).toBe(value.length);
    const rights = message.control.filter(({ type }) => type === so.SCM_RIGHTS);
    const wanted = value.scm.flatMap((one) => one.rights).length;
    expect(rights.reduce((sum, { data }) => sum + data.length / 4, 0)).toBe(wanted);
    for (const { data } of rights) opened.push(data.readInt32LE(0));
  }
});

/** Files 5 to 18 of that set, but 9, which is in flight; its sockets lie in this directory. */
const CRIU_SOCKETS = [5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18];
const CRIU_DIRECTORY = "/tmp/criu-fx/run";
