import { testRoom } from "./suite.ts";

testRoom("timers");
