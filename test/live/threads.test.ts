import { reapOrphansHere, testRoom } from "./suite.ts";

reapOrphansHere();

testRoom("threads");
