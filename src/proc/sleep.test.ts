import { spawn } from "node:child_process";
import { describe, expect, it, onTestFinished } from "vitest";
import { SYSCALLS } from "../sys/syscalls.x86_64.ts";
import { parseSyscall, readSleep, readSwitches } from "./sleep.ts";

/** glibc sleeps by it since 2.17; the engine does not make it. */
const CLOCK_NANOSLEEP = 230;

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
  it("does not take a running thread for a sleeping one", async () => {
    const busy = spawn("sh", ["-c", "while :; do :; done"], { stdio: "ignore" });
    onTestFinished(() => void busy.kill("SIGKILL"));
    const pid = busy.pid ?? 0;
    // The shell reads its files first.
    await expect.poll(() => readSleep(pid, pid)).toBeUndefined();
    expect(readSwitches(pid, pid)).toBeGreaterThanOrEqual(0);
  });

  it("tells in which call a thread sleeps", async () => {
    const asleep = spawn("sleep", ["60"], { stdio: "ignore" });
    onTestFinished(() => void asleep.kill("SIGKILL"));
    const pid = asleep.pid ?? 0;
    await expect
      .poll(() => readSleep(pid, pid)?.call)
      .toBeOneOf([SYSCALLS.nanosleep.nr, CLOCK_NANOSLEEP]);
  });
});
