//! Containers that are made and removed under one id at the same time, and a pod that is to end meanwhile.

use std::sync::Arc;

use kiai_interleave::check;
use kiai_interleave::parking_lot::Mutex;
use kiai_interleave::shuttle::rand::Rng;
use kiai_interleave::shuttle::rand::thread_rng;
use kiai_interleave::shuttle::sync::atomic::AtomicUsize;
use kiai_interleave::shuttle::sync::atomic::Ordering::SeqCst;
use kiai_interleave::shuttle::thread;

use super::table::NoEntry;
use super::table::Table;

const ID: &str = "c";

#[test]
fn an_id_is_one_containers_from_its_making_to_its_removal() {
    check(|| {
        let (table, there) = (Arc::new(Table::default()), Arc::new(AtomicUsize::new(0)));
        let makers = [0, 1, 2].map(|number| {
            let (table, there) = (table.clone(), there.clone());
            thread::spawn(move || {
                let Ok(reservation) = table.reserve(ID) else { return };
                assert_eq!(there.fetch_add(1, SeqCst), 0, "two under one id");
                if thread_rng().gen_bool(0.3) {
                    there.fetch_sub(1, SeqCst);
                    return drop(reservation);
                }
                let container = Arc::new(number);
                reservation.fill(container.clone());
                assert_eq!(table.get(ID), Some(container.clone()));
                there.fetch_sub(1, SeqCst);
                table.remove(ID, &container);
            })
        });
        makers.into_iter().for_each(|maker| maker.join().unwrap());
        assert!(table.all().is_empty() && table.close_if_empty());
    });
}

#[test]
fn a_late_removal_does_not_remove_the_next_container_with_the_id() {
    check(|| {
        let table = Arc::new(Table::default());
        table.reserve(ID).unwrap().fill(Arc::new("first"));
        let removers = [(); 2].map(|()| {
            let table = table.clone();
            thread::spawn(move || {
                if let Some(container) = table.get(ID).filter(|container| **container == "first") {
                    table.remove(ID, &container);
                }
            })
        });
        let next = table.reserve(ID).map(|reservation| reservation.fill(Arc::new("next")));
        removers.into_iter().for_each(|remover| remover.join().unwrap());
        let there = table.get(ID).map(|container| *container);
        assert_eq!(there, next.is_ok().then_some("next"));
    });
}

#[test]
fn nothing_comes_to_a_pod_that_ends_because_it_was_empty() {
    check(|| {
        let table = Arc::new(Table::default());
        let other = table.clone();
        let closing = thread::spawn(move || other.close_if_empty());
        let made = table.reserve(ID).map(|reservation| {
            thread::yield_now();
            reservation.fill(Arc::new(()));
        });
        let closed = closing.join().unwrap();
        assert_eq!(made, if closed { Err(NoEntry::Closed) } else { Ok(()) });
        assert_eq!(table.all().len(), usize::from(!closed));
    });
}

#[test]
fn an_added_entry_is_reported_before_it_is_found_and_never_after_the_end() {
    #[derive(Debug, PartialEq, Eq)]
    enum Event {
        Added,
        Found,
        Closed,
    }
    check(|| {
        let (table, events) = (Arc::new(Table::default()), Arc::new(Mutex::new(Vec::new())));
        let (closes, tells) = (table.clone(), events.clone());
        let closing = thread::spawn(move || {
            closes.close();
            tells.lock().push(Event::Closed);
        });
        let (finds, tells) = (table.clone(), events.clone());
        let finding = thread::spawn(move || {
            if finds.get(ID).is_some() {
                tells.lock().push(Event::Found);
            }
        });
        let added = table.add(ID, Arc::new(()), || events.lock().push(Event::Added));
        closing.join().unwrap();
        finding.join().unwrap();
        let events = events.lock();
        let at = |wanted| events.iter().position(|event| *event == wanted);
        assert_eq!(at(Event::Added).is_some(), added.is_ok());
        assert!(at(Event::Added).is_none_or(|added| at(Event::Closed) > Some(added)), "{events:?}");
        assert!(at(Event::Found).is_none_or(|found| at(Event::Added).is_some_and(|added| added < found)));
    });
}
