// Internet sockets: the room's programs, and a server whose peer is this very process.

import { once } from "node:events";
import { readFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { describe, expect, onTestFinished, test } from "vitest";
import { checkpoint } from "../../src/engine/checkpoint.ts";
import { restore } from "../../src/engine/restore.ts";
import { attachProgram, type RunningProgram } from "./programs.ts";
import { endWithTest, imagesDirOf, reapOrphansHere, start, testRoom } from "./suite.ts";

reapOrphansHere();

testRoom("inet");

describe("a TCP server with a peer outside of the tree", () => {
  test("keeps the connection, and what the peer sends while nobody is there", async () => {
    let server = await start("tcp_echo");
    const peer = await connectTo(server);
    expect(await echo(peer, "before")).toBe("before");
    for (const word of ["once", "twice"]) {
      const options = { imagesDir: imagesDirOf(server), tcp: { established: true } };
      await checkpoint({ pid: server.pid, ...options });
      peer.write(`while it is away, ${word}`);
      const { pid } = await restore(options);
      server = endWithTest(attachProgram("tcp_echo", pid, server.dir));
      expect(await received(peer)).toBe(`while it is away, ${word}`);
      expect(await echo(peer, "after")).toBe("after");
    }
    expect(await server.finish()).toBe("pass");
  });

  test("is refused without leave, and the connection goes on", async () => {
    const server = await start("tcp_echo");
    const peer = await connectTo(server);
    expect(await echo(peer, "before")).toBe("before");
    const imagesDir = imagesDirOf(server);
    await expect(checkpoint({ pid: server.pid, imagesDir })).rejects.toMatchObject({
      code: "UNSUPPORTED",
      pid: server.pid,
      message: expect.stringMatching(/fd \d+ of pid \d+ .*a TCP connection to 127\.0\.0\.1/),
    });
    expect(await echo(peer, "after")).toBe("after");
    expect(await server.finish()).toBe("pass");
  });

  test("goes on with the connection when it is left running", async () => {
    const server = await start("tcp_echo");
    const peer = await connectTo(server);
    expect(await echo(peer, "before")).toBe("before");
    const options = { imagesDir: imagesDirOf(server), tcp: { established: true } };
    await checkpoint({ pid: server.pid, leave: "running", ...options });
    expect(await echo(peer, "after")).toBe("after");
    expect(await server.finish()).toBe("pass");
  });

  test("comes back without the connection with `close`", async () => {
    const server = await start("tcp_echo");
    const peer = await connectTo(server);
    expect(await echo(peer, "before")).toBe("before");
    const ended = closed(peer);
    const imagesDir = imagesDirOf(server);
    await checkpoint({ pid: server.pid, imagesDir, tcp: { close: true } });
    await ended;
    const { pid } = await restore({ imagesDir });
    const restored = endWithTest(attachProgram("tcp_echo", pid, server.dir));
    expect(await echo(await connectTo(server), "another")).toBe("another");
    expect(await restored.finish()).toBe("pass");
  });

  test("does not take connections that wait to be accepted but with `skipInFlight`", async () => {
    const server = await start("tcp_echo");
    process.kill(server.pid, "SIGSTOP");
    const peer = await connectTo(server);
    const ended = closed(peer);
    const options = { pid: server.pid, imagesDir: imagesDirOf(server) };
    await expect(checkpoint(options)).rejects.toThrow("1 connections wait to be accepted");
    await checkpoint({ ...options, tcp: { skipInFlight: true } });
    await ended;
    const { pid } = await restore({ imagesDir: options.imagesDir });
    process.kill(pid, "SIGCONT");
    const restored = endWithTest(attachProgram("tcp_echo", pid, server.dir));
    expect(await echo(await connectTo(server), "another")).toBe("another");
    expect(await restored.finish()).toBe("pass");
  });
});

test("a connection of Multipath TCP is refused by name, and goes on", async () => {
  const program = await start("refused", ["mptcp"]);
  const options = { imagesDir: imagesDirOf(program), tcp: { established: true } };
  await expect(checkpoint({ pid: program.pid, ...options })).rejects.toMatchObject({
    code: "UNSUPPORTED",
    pid: program.pid,
    message: expect.stringMatching(
      /fd \d+ of pid \d+ .*a Multipath TCP connection to 127\.0\.0\.1/,
    ),
  });
  expect(await program.ask()).toBe("ok 1");
  expect(await program.finish()).toBe("pass");
});

test.each(["urgent", "urgent_read"])(
  "a connection with more behind an %s byte is refused, and goes on",
  async (object) => {
    const program = await start("refused", [object]);
    const options = { imagesDir: imagesDirOf(program), tcp: { established: true } };
    await expect(checkpoint({ pid: program.pid, ...options })).rejects.toMatchObject({
      code: "UNSUPPORTED",
      pid: program.pid,
      message: expect.stringMatching(/fd \d+ of pid \d+ .*urgent data/),
    });
    expect(await program.ask()).toBe("ok 1");
    expect(await program.finish()).toBe("pass");
  },
);

async function connectTo(server: RunningProgram): Promise<Socket> {
  const port = Number(readFileSync(join(server.dir, "port"), "utf8"));
  const peer = connect(port, "127.0.0.1");
  peer.on("error", () => {}); // a reset is told by "close", too
  onTestFinished(() => void peer.destroy());
  await once(peer, "connect");
  return peer;
}

/** `once` would take a reset for a failure. */
function closed(peer: Socket): Promise<void> {
  return new Promise((resolve) => peer.once("close", () => resolve()));
}

async function echo(peer: Socket, text: string): Promise<string> {
  peer.write(text);
  return received(peer);
}

async function received(peer: Socket): Promise<string> {
  const [data] = (await once(peer, "data", { signal: AbortSignal.timeout(15_000) })) as [Buffer];
  return data.toString();
}
