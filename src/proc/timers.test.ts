import { describe, expect, it } from "vitest";
import { parseTimers, readTimers, readTimersIfAlive } from "./timers.ts";

const TEXT = `ID: 0
signal: 14/0000000000000000
notify: signal/pid.26604
ClockID: 0
ID: 12
signal: 34/00007f1844d70010
notify: signal/tid.26605
ClockID: -6
ID: 3
signal: 5/          (null)
notify: none/pid.0
ClockID: 1
ID: 4
signal: 64/ffffffffffffffff
notify: thread/pid.7
ClockID: 7
`;

describe("parseTimers()", () => {
  it("reads every kind of notification", () => {
    expect(parseTimers(TEXT)).toStrictEqual([
      {
        id: 0,
        signo: 14,
        sigval: 0n,
        notify: "signal",
        toThread: false,
        target: 26604,
        clockId: 0,
      },
      {
        id: 12,
        signo: 34,
        sigval: 0x7f1844d70010n,
        notify: "signal",
        toThread: true,
        target: 26605,
        clockId: -6,
      },
      { id: 3, signo: 5, sigval: 0n, notify: "none", toThread: false, target: 0, clockId: 1 },
      {
        id: 4,
        signo: 64,
        sigval: 0xffffffffffffffffn,
        notify: "thread",
        toThread: false,
        target: 7,
        clockId: 7,
      },
    ]);
  });

  it("gives nothing for an empty file", () => {
    expect(parseTimers("")).toStrictEqual([]);
  });
});

describe("readTimers()", () => {
  it("finds none in this process, and no process that is not there", () => {
    expect(readTimers(process.pid)).toStrictEqual([]);
    expect(readTimersIfAlive(2 ** 30)).toBeUndefined();
  });
});
