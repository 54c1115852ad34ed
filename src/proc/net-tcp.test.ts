import { once } from "node:events";
import { connect, createServer, type AddressInfo } from "node:net";
import { expect, it, onTestFinished } from "vitest";
import { readFds } from "./fd.ts";
import { readConnectionInodes } from "./net-tcp.ts";

it("readConnectionInodes() tells both ends of a connection, and no listener", async () => {
  const server = createServer().listen(0, "127.0.0.1");
  onTestFinished(() => void server.close());
  await once(server, "listening");
  const before = socketsOfOurs();
  const client = connect((server.address() as AddressInfo).port, "127.0.0.1");
  onTestFinished(() => void client.destroy());
  await Promise.all([once(client, "connect"), once(server, "connection")]);
  const ends = [...socketsOfOurs()].filter((inode) => !before.has(inode));
  expect(ends).toHaveLength(2);
  const connections = readConnectionInodes(process.pid);
  expect(ends.every((inode) => connections.has(inode))).toBe(true);
  expect([...before].some((inode) => connections.has(inode))).toBe(false);
});

function socketsOfOurs(): Set<number> {
  const inodes = readFds(process.pid).flatMap(
    ({ target }) => /^socket:\[(\d+)\]$/.exec(target)?.[1] ?? [],
  );
  return new Set(inodes.map(Number));
}
