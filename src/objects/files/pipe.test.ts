// Pipes and FIFOs: there and back in this process.
import { constants, openSync, readSync, writeSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import * as fcntl from "../../sys/abi/fcntl.ts";
import { syscall } from "../../sys/ffi.ts";
import { SavedFiles } from "./round-trip.fixture.ts";
import { codeOf, info, readNow, target, Scratch } from "./scratch.fixture.ts";

let scratch: Scratch;

beforeEach(() => {
  scratch = new Scratch();
});

afterEach(() => {
  scratch[Symbol.dispose]();
});

function makePipe(flags = 0): [number, number] {
  const ends = Buffer.alloc(8);
  syscall("pipe2", ends, flags);
  return [scratch.keep(ends.readInt32LE(0)), scratch.keep(ends.readInt32LE(4))];
}

describe("pipes", () => {
  it("keep content, size and flags, and take nothing out", () => {
    const [reader, writer] = makePipe(fcntl.O_NONBLOCK);
    syscall("fcntl", writer, fcntl.F_SETPIPE_SZ, 131_072);
    writeSync(writer, "x".repeat(100_000));
    using saved = new SavedFiles([writer, reader]);
    const [copiedWriter = -1, copiedReader = -1] = saved.restore();
    expect(info(copiedReader).flags).toBe(info(reader).flags);
    expect(info(copiedWriter).flags).toBe(info(writer).flags);
    expect(syscall("fcntl", copiedReader, fcntl.F_GETPIPE_SZ, 0)).toBe(131_072);
    writeSync(copiedWriter, "yz");
    expect(readNow(copiedReader)).toBe(`${"x".repeat(100_000)}yz`);
    expect(readNow(reader)).toBe("x".repeat(100_000));
  });

  it("keep content that lies in many small pieces", () => {
    const [reader, writer] = makePipe();
    for (let i = 0; i < 10; i++) {
      writeSync(writer, "a".repeat(4096));
      readSync(reader, Buffer.alloc(4000), 0, 4000, null);
    }
    using saved = new SavedFiles([reader, writer]);
    expect(readNow(saved.restore()[0] ?? -1).length).toBe(960);
  });

  it("see their end when nobody writes any more", () => {
    const [reader, writer] = makePipe();
    writeSync(writer, "last");
    scratch.close(writer);
    using saved = new SavedFiles([reader]);
    const [copy = -1] = saved.restore();
    const bytes = Buffer.alloc(10);
    expect(syscall("read", copy, bytes, 10)).toBe(4);
    expect(syscall("read", copy, bytes, 10)).toBe(0);
  });

  it("keep a second description of an end apart", () => {
    const [reader, writer] = makePipe();
    const second = scratch.keep(
      openSync(`/proc/self/fd/${reader}`, constants.O_RDONLY | constants.O_NONBLOCK),
    );
    using saved = new SavedFiles([reader, writer, second]);
    const copies = saved.restore();
    expect(new Set(copies).size).toBe(3);
    expect(copies.map(info)).toEqual([reader, writer, second].map(info));
    writeSync(copies[1] ?? -1, "through");
    expect(readNow(copies[2] ?? -1)).toBe("through");
  });

  it.each([[["packet"]], [["one", "two", "x".repeat(4096), "y"]], [["z"]]])(
    "come back with their packets: %j",
    (packets) => {
      const [reader, writer] = makePipe(fcntl.O_DIRECT);
      for (const packet of packets) writeSync(writer, packet);
      // Neither end has to be in packet mode any more.
      syscall("fcntl", writer, fcntl.F_SETFL, 0);
      using saved = new SavedFiles([reader, writer]);
      const [from = -1] = saved.restore();
      expect(packets.map(() => readNow(from))).toEqual(packets);
      for (const packet of packets) expect(readNow(reader)).toBe(packet);
    },
  );

  it("are refused when a stream lies before packets", () => {
    const [, writer] = makePipe();
    // A page that is not full would take what comes next.
    writeSync(writer, Buffer.alloc(8192));
    syscall("fcntl", writer, fcntl.F_SETFL, fcntl.O_DIRECT);
    for (const packet of ["one", "two"]) writeSync(writer, packet);
    const reader = scratch.keep(openSync(`/proc/self/fd/${writer}`, constants.O_RDONLY));
    expect(codeOf(() => new SavedFiles([reader]))).toMatchObject({ code: "UNSUPPORTED" });
  });

  it("lose of a packet what a reader has no room for, and of a stream nothing", () => {
    for (const [flags, rest] of [
      [fcntl.O_DIRECT, "next"],
      [0, "acketnext"],
    ] as const) {
      const [reader, writer] = makePipe(flags);
      writeSync(writer, "packet");
      using saved = new SavedFiles([reader, writer]);
      const [from = -1, to = -1] = saved.restore();
      expect(readSync(from, Buffer.alloc(1), 0, 1, null)).toBe(1);
      writeSync(to, "next");
      expect(readNow(from)).toBe(rest);
    }
  });

  it("come back in packet mode when they are empty", () => {
    const [reader, writer] = makePipe(fcntl.O_DIRECT);
    using saved = new SavedFiles([reader, writer]);
    const copies = saved.restore();
    expect(copies.map(info)).toEqual([reader, writer].map(info));
    const [from = -1, to = -1] = copies;
    writeSync(to, "one");
    writeSync(to, "two");
    expect(readNow(from)).toBe("one");
  });
});

describe("FIFOs", () => {
  it("keep ends, content and path", () => {
    scratch.makeFifo("f");
    const both = scratch.keep(openSync(scratch.path("f"), "r+"));
    const reader = scratch.keep(
      openSync(scratch.path("f"), constants.O_RDONLY | constants.O_NONBLOCK),
    );
    const writer = scratch.keep(openSync(scratch.path("f"), "w"));
    writeSync(writer, "waiting");
    using saved = new SavedFiles([reader, writer, both]);
    expect(readNow(reader)).toBe("waiting");
    const copies = saved.restore();
    expect(copies.map(target)).toEqual([scratch.path("f"), scratch.path("f"), scratch.path("f")]);
    expect(copies.map(info)).toEqual([reader, writer, both].map(info));
    expect(readNow(copies[0] ?? -1)).toBe("waiting");
  });
});
