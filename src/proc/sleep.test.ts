import { describe, expect, it } from "vitest";
import { parseSyscall, readSleep } from "./sleep.ts";

describe("parseSyscall()", () => {
  it("reads number, arguments and pointers", () => {
    const text = "230 0x0 0x1 0x7ffd 0x0 0x0 0xffffffffffffffff 0x7ffc0010 0x7f0011\n";
    expect(parseSyscall(text)).toEqual({
      call: 230,
      words: [0n, 1n, 0x7ffdn, 0n, 0n, 0xffff_ffff_ffff_ffffn, 0x7ffc_0010n, 0x7f_0011n],
    });
  });

  it.each(["running\n", "-1 0x7ffc0010 0x7f0011\n", ""])("says nothing of %j", (text) => {
    expect(parseSyscall(text)).toBeUndefined();
  });
});

describe("readSleep()", () => {
  it("does not take a running thread for a sleeping one", () => {
    expect(readSleep(process.pid, process.pid)).toBeUndefined();
  });
});
