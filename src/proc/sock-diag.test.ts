import { createServer } from "node:net";
import { afterEach, expect, it } from "vitest";
import * as so from "../sys/abi/socket.ts";
import { syscall, trySyscall } from "../sys/ffi.ts";
import { socketPair } from "../sys/socket.ts";
import { readFdStat } from "./links.ts";
import { readInetSockets, readUnixSockets, type UnixSocket } from "./sock-diag.ts";

const opened: number[] = [];

afterEach(() => {
  for (const fd of opened.splice(0)) trySyscall("close", fd);
});

const IPPROTO_TCP = 6;

function inodeOf(fd: number): number {
  return Number(readFdStat(process.pid, fd).inode);
}

function look(fd: number): UnixSocket | undefined {
  const inode = inodeOf(fd);
  return readUnixSockets().find((socket) => socket.inode === inode);
}

it("readUnixSockets() tells peer, queues and shutdown of a pair", () => {
  const [a, b] = socketPair(so.AF_UNIX, so.SOCK_STREAM);
  opened.push(a, b);
  syscall("sendto", a, Buffer.from("four"), 4, 0, 0, 0);
  syscall("shutdown", a, so.SHUT_WR);
  expect(look(b)).toMatchObject({
    type: so.SOCK_STREAM,
    state: so.TCP_ESTABLISHED,
    peer: inodeOf(a),
    receiveQueue: 4,
    shutdown: 1,
    file: undefined,
  });
  expect(look(a)?.shutdown).toBe(2);
  trySyscall("close", a);
  expect(look(b)).toMatchObject({ peer: 0, shutdown: 3 });
});

it("readUnixSockets() tells name, backlog and those who wait of a listener", () => {
  const listener = syscall("socket", so.AF_UNIX, so.SOCK_STREAM | so.SOCK_CLOEXEC, 0);
  const client = syscall("socket", so.AF_UNIX, so.SOCK_STREAM | so.SOCK_CLOEXEC, 0);
  opened.push(listener, client);
  const name = Buffer.from(`\0reprise-diag-${process.pid}`);
  const address = Buffer.concat([Buffer.from([so.AF_UNIX, 0]), name]);
  syscall("bind", listener, address, address.length);
  syscall("listen", listener, 7);
  expect(look(client)).toMatchObject({ state: so.TCP_CLOSE, peer: undefined });
  syscall("connect", client, address, address.length);
  expect(look(listener)).toMatchObject({
    state: so.TCP_LISTEN,
    name,
    sendQueue: 7,
    receiveQueue: 1,
    waiting: [inodeOf(client)],
  });
  expect(look(client)).toMatchObject({ state: so.TCP_ESTABLISHED, peer: 0 });
});

it("readInetSockets() tells ports and addresses", async () => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen({ port: 0, host: "127.0.0.1" }, resolve));
  const address = server.address();
  const port = address !== null && typeof address === "object" ? address.port : 0;
  const found = readInetSockets(so.AF_INET, IPPROTO_TCP).find((one) => one.sourcePort === port);
  server.close();
  expect(found).toMatchObject({
    family: so.AF_INET,
    state: so.TCP_LISTEN,
    source: Buffer.from([127, 0, 0, 1]),
    destinationPort: 0,
    receiveQueue: 0,
  });
  expect(found?.inode).toBeGreaterThan(0);
});

it("a request for an unknown family names the error", () => {
  expect(() => readInetSockets(77, IPPROTO_TCP)).toThrow(/netlink .*: (ENOENT|EINVAL)/);
});
