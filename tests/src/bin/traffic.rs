//! Echo server and load generators of the scenarios, as a program of its own.

use std::{
    io::Write,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Parser, Subcommand};
use shifter_tests::traffic::{
    echo, poll,
    storm::{self, Plan},
};

/// Echo server and load generator of shifter's scenarios.
#[derive(Parser)]
#[command(name = "traffic")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Answers TCP and UDP with frames stamped by an identity, until it is killed.
    Echo {
        /// Address and port; may be given more than once.
        #[arg(long, required = true)]
        listen: Vec<SocketAddr>,
        /// Stamp, 1 to 255.
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
        identity: u8,
    },
    /// Keeps many flows busy from this namespace and checks every answer.
    Storm {
        /// Where to connect; flows are spread over all that are given.
        #[arg(long, required = true)]
        to: Vec<SocketAddr>,
        #[arg(long, default_value_t = 100)]
        tcp_flows: u32,
        #[arg(long, default_value_t = 0)]
        udp_flows: u32,
        /// Frames a second and flow.
        #[arg(long, default_value_t = 4)]
        rate: u32,
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
}

fn main() -> Result<()> {
    poll::raise_file_limit();
    match Arguments::parse().verb {
        Verb::Echo { listen, identity } => {
            echo::serve(&listen, identity, || {
                println!("ready");
                // The reader polls; a closed pipe is no reason to stop serving.
                let _ = std::io::stdout().flush();
            })?;
        }
        Verb::Storm {
            to,
            tcp_flows,
            udp_flows,
            rate,
            seconds,
        } => {
            let plan = Plan {
                tcp_to: to.clone(),
                udp_to: to,
                tcp_flows,
                udp_flows,
                rate,
            };
            let end = Instant::now() + Duration::from_secs(seconds);
            let report = storm::run(&plan, &|| Instant::now() >= end)?;
            println!("{report:#?}");
        }
    }
    Ok(())
}
